//! Names that layers of a noise predictor have in the program that Stable Diffusion was first trained with. kohya's scripts keep
//! them for SDXL.
//!
//! Blocks are counted through there: a resolution has its layers and then what changes to the next one, and whatever stands at the
//! same place has one number, with another one for residuals (0) and attentions (1) behind it.
//!
//! Source: `UNetModel` of `ldm/modules/diffusionmodules/openaimodel.py`, read back by `_maybe_map_sgm_blocks_to_diffusers` of
//! diffusers 0.42.

/// The layers of a noise predictor, by the paths of diffusers, with these names.
pub(super) fn ldm_names<'a>(paths: &[&'a str]) -> Vec<(String, &'a str)> {
    let of_first = paths.iter().filter_map(|path| path.strip_prefix("down_blocks.0.resnets."));
    let layers =
        of_first.filter_map(|rest| rest.split('.').next()?.parse().ok()).max().map_or(0, |last: usize| last + 1);
    let attentions = paths.iter().filter_map(|path| {
        let (block, rest) = path.strip_prefix("up_blocks.")?.split_once('.')?;
        rest.starts_with("attentions.").then(|| block.parse().ok())?
    });
    let names = Names { layers, with_attention: attentions.collect() };
    paths.iter().filter_map(|path| Some((names.of(path)?, *path))).collect()
}

struct Names {
    /// Residuals of a block on the way down.
    layers: usize,
    /// Blocks on the way up that have attentions.
    with_attention: std::collections::HashSet<usize>,
}

impl Names {
    fn of(&self, path: &str) -> Option<String> {
        let parts: Vec<&str> = path.split('.').collect();
        let number = |at: usize| parts.get(at)?.parse::<usize>().ok();
        let rest = |from: usize| parts[from..].join(".");
        let places = self.layers + 1;
        match parts[..] {
            ["conv_in"] => Some("input_blocks.0.0".to_owned()),
            ["conv_out"] => Some("out.2".to_owned()),
            ["time_embedding", "linear_1"] => Some("time_embed.0".to_owned()),
            ["time_embedding", "linear_2"] => Some("time_embed.2".to_owned()),
            ["add_embedding", "linear_1"] => Some("label_emb.0.0".to_owned()),
            ["add_embedding", "linear_2"] => Some("label_emb.0.2".to_owned()),
            ["down_blocks", _, "downsamplers", ..] => Some(format!("input_blocks.{}.0.op", (number(1)? + 1) * places)),
            ["down_blocks", _, kind, ..] => {
                let at = 1 + number(1)? * places + number(3)?;
                Some(format!("input_blocks.{at}.{}", layer(kind, &rest(4))?))
            }
            ["mid_block", "resnets", ..] => Some(format!("middle_block.{}.{}", 2 * number(2)?, residual(&rest(3))?)),
            ["mid_block", "attentions", ..] => Some(format!("middle_block.{}.{}", 2 * number(2)? + 1, rest(3))),
            ["up_blocks", _, "upsamplers", ..] => {
                let block = number(1)?;
                let behind = if self.with_attention.contains(&block) { 2 } else { 1 };
                Some(format!("output_blocks.{}.{behind}.conv", block * places + self.layers))
            }
            ["up_blocks", _, kind, ..] => {
                let at = number(1)? * places + number(3)?;
                Some(format!("output_blocks.{at}.{}", layer(kind, &rest(4))?))
            }
            _ => None,
        }
    }
}

/// A layer at one place of a block.
fn layer(kind: &str, rest: &str) -> Option<String> {
    match kind {
        "resnets" => Some(format!("0.{}", residual(rest)?)),
        "attentions" => Some(format!("1.{rest}")),
        _ => None,
    }
}

/// A layer of a residual.
fn residual(name: &str) -> Option<&'static str> {
    match name {
        "conv1" => Some("in_layers.2"),
        "time_emb_proj" => Some("emb_layers.1"),
        "conv2" => Some("out_layers.3"),
        "conv_shortcut" => Some("skip_connection"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names as published files of SDXL have them, whose blocks have two layers.
    #[test]
    fn names_of_sdxl() {
        let pairs = [
            ("input_blocks.0.0", "conv_in"),
            ("label_emb.0.2", "add_embedding.linear_2"),
            ("input_blocks.1.0.in_layers.2", "down_blocks.0.resnets.0.conv1"),
            ("input_blocks.2.0.out_layers.3", "down_blocks.0.resnets.1.conv2"),
            ("input_blocks.3.0.op", "down_blocks.0.downsamplers.0.conv"),
            ("input_blocks.4.0.skip_connection", "down_blocks.1.resnets.0.conv_shortcut"),
            (
                "input_blocks.4.1.transformer_blocks.0.attn1.to_out.0",
                "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0",
            ),
            ("input_blocks.8.1.proj_in", "down_blocks.2.attentions.1.proj_in"),
            ("middle_block.1.proj_out", "mid_block.attentions.0.proj_out"),
            ("middle_block.2.emb_layers.1", "mid_block.resnets.1.time_emb_proj"),
            (
                "output_blocks.5.1.transformer_blocks.1.ff.net.0.proj",
                "up_blocks.1.attentions.2.transformer_blocks.1.ff.net.0.proj",
            ),
            ("output_blocks.5.2.conv", "up_blocks.1.upsamplers.0.conv"),
            ("output_blocks.8.0.in_layers.2", "up_blocks.2.resnets.2.conv1"),
            ("out.2", "conv_out"),
        ];
        let names = ldm_names(&pairs.map(|it| it.1));
        assert_eq!(names, pairs.map(|(name, path)| (name.to_owned(), path)));
    }

    /// In Stable Diffusion 1 and 2 the lowest block has no attention, and nothing stands between its layers and the next block.
    #[test]
    fn an_upsampler_behind_residuals() {
        let paths = ["down_blocks.0.resnets.1.conv1", "up_blocks.0.resnets.2.conv1", "up_blocks.0.upsamplers.0.conv"];
        assert_eq!(ldm_names(&paths)[2].0, "output_blocks.2.1.conv");
    }
}

//! The command line of `cargo xtask bench`.

use std::path::PathBuf;

use super::shapes::{COMPARED, METHODS, PEERS, Peer, SHAPES, Shape, TINY, Tuner};

pub(crate) const USAGE: &str = "\
usage: cargo xtask bench [options]

  --compare        runs other programs at the same work in turn with ours, step by step
  --python PATH    a Python that has torch, transformers and peft; --compare needs it
  --json FILE      writes the rows as JSON, after every row
  --device NAME    flex (default), wgpu, cuda, tch: builds the worker with that backend
  --shape NAME     gpt2-124m, smollm2-135m, bert-base, vit-base, swin-tiny, segformer-b0, sd15-unet, whisper-base, and
                   only if named smollm2-135m-1024, -2048, -4096, llama-1.1b, llama-3.2-3b, llama-7b; may be repeated
  --method NAME    lora-r8, lora-r16, lora-r8-all, lora-r16-all, dora-r8, lora-r16-all-nf4, lora-r16-all-int8, adapters-4,
                   and only if named lora-r8-bf16, lora-r16-all-bf16, lora-r16-all-nf4-bf16, lora-r16-all-llm-int8, lora-r16-all-nf4-again
                   (which keeps little of a layer and computes it again in the backward); may be repeated
                   (default with --compare: lora-r8, lora-r8-all, dora-r8 and adapters-4)
  --peer NAME      peft-torch, burn-lora, full, ours-f32 (for few bits and bf16), and only if named
                   peft-torch-compiled; may be repeated
  --steps N        steps that count, after one that warms up [default: 5]
  --threads N      threads of each program [default: all cores]
  --launches       counts the kernels that a step launches on a card, with those of this program and with Burn's only;
                   --device must be one of `cuda`, `vulkan`, `metal`, `wgpu` and `cube-cpu`
  --quick          tiny shapes and one step: shows in seconds that everything runs, and measures nothing

Shapes are built from their configurations with random weights in the folder for temporary files (about 0.5 GB a shape,
3.4 GB for sd15-unet, 2.2 GB for llama-1.1b, 6.4 GB for llama-3.2-3b, 13.5 GB for llama-7b). A quantised base is compared with bitsandbytes.
Times are medians; with --compare two programs are in memory at once.";

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) compare: bool,
    pub(crate) launches: bool,
    pub(crate) python: Option<PathBuf>,
    pub(crate) json: Option<PathBuf>,
    pub(crate) device: String,
    pub(crate) shapes: Vec<&'static Shape>,
    pub(crate) methods: Vec<&'static Tuner>,
    pub(crate) peers: Vec<Peer>,
    pub(crate) steps: usize,
    pub(crate) threads: usize,
}

impl Options {
    pub(crate) fn parse(arguments: &[String]) -> Result<Self, String> {
        let (mut compare, mut launches, mut quick, mut python, mut json) = (false, false, false, None, None);
        let (mut device, mut steps, mut threads) = ("flex".to_owned(), None, None);
        let (mut shapes, mut methods, mut peers) = (Vec::new(), Vec::new(), Vec::new());
        let mut words = arguments.iter().map(String::as_str);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("`{word}` needs a value"));
            match word {
                "--compare" => compare = true,
                "--launches" => launches = true,
                "--quick" => quick = true,
                "--python" => python = Some(PathBuf::from(value()?)),
                "--json" => json = Some(PathBuf::from(value()?)),
                "--device" => device = value()?.to_owned(),
                "--steps" => steps = Some(number(word, value()?)?),
                "--threads" => threads = Some(number(word, value()?)?),
                "--shape" => shapes.push(value()?),
                "--method" => methods.push(value()?),
                "--peer" => peers.push(value()?),
                other => return Err(format!("`{other}` is unknown")),
            }
        }
        let peers = pick("peer", &peers, PEERS.iter(), |it| (it.name(), it.on_demand()))?;
        let peers = peers.into_iter().copied().collect::<Vec<_>>();
        if compare && python.is_none() && peers.iter().any(|it| it.is_python()) {
            return Err(
                "`--compare` needs `--python PATH`; or name the other peers: --peer burn-lora --peer full".into()
            );
        }
        if methods.is_empty() && compare {
            methods.extend(COMPARED);
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            compare,
            launches,
            python,
            json,
            device,
            shapes: pick("shape", &shapes, if quick { TINY.iter() } else { SHAPES.iter() }, |it| {
                (it.name, it.on_demand)
            })?,
            methods: pick("method", &methods, METHODS.iter(), |it| (it.name, it.on_demand()))?,
            peers,
            steps: steps.unwrap_or(if quick { 1 } else { 5 }),
            threads: threads.unwrap_or(cores),
        })
    }

    /// What torch calls the device.
    pub(crate) fn torch_device(&self) -> &'static str {
        if self.device.starts_with("cuda") { "cuda" } else { "cpu" }
    }
}

fn number(word: &str, value: &str) -> Result<usize, String> {
    match value.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("`{word} {value}`: expected a whole number above 0")),
    }
}

/// Those of these names, in the order of the list; without a name all that are not on demand.
fn pick<'a, T>(
    what: &str,
    names: &[&str],
    all: impl Iterator<Item = &'a T>,
    about: impl Fn(&T) -> (&'static str, bool),
) -> Result<Vec<&'a T>, String> {
    let all: Vec<&T> = all.collect();
    if let Some(unknown) = names.iter().find(|it| !all.iter().any(|one| about(one).0 == **it)) {
        let known: Vec<&str> = all.iter().map(|it| about(it).0).collect();
        return Err(format!("there is no {what} `{unknown}`; there are {}", known.join(", ")));
    }
    let is_wanted = |(name, on_demand): (&str, bool)| match names.is_empty() {
        true => !on_demand,
        false => names.contains(&name),
    };
    Ok(all.into_iter().filter(|it| is_wanted(about(it))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn everything_is_measured_unless_something_is_named() {
        let all = parse("").unwrap();
        assert_eq!((all.shapes.len(), all.methods.len(), all.steps), (SHAPES.len() - 6, METHODS.len() - 5, 5));
        let some = parse("--quick --shape bert-tiny --method dora-r8 --method lora-r8 --steps 3").unwrap();
        assert_eq!(some.shapes.iter().map(|it| it.name).collect::<Vec<_>>(), ["bert-tiny"]);
        assert_eq!(some.methods.iter().map(|it| it.name).collect::<Vec<_>>(), ["lora-r8", "dora-r8"]);
        assert_eq!(some.steps, 3);
    }

    #[test]
    fn a_comparison_with_torch_needs_a_python() {
        assert!(parse("--compare").unwrap_err().contains("--python"));
        assert_eq!(parse("--compare --peer full").unwrap().peers, [Peer::Full]);
        assert_eq!(parse("--compare --python python3").unwrap().methods.len(), COMPARED.len());
    }

    #[test]
    fn wrong_words_name_the_right_ones() {
        assert!(parse("--shape gpt3").unwrap_err().contains("gpt2-124m"));
        assert!(parse("--steps 0").is_err());
        assert!(parse("--json").unwrap_err().contains("needs a value"));
    }
}

//! The command lines of `cargo xtask card` and of the visit.

use std::path::PathBuf;

use crate::features::is_backend;

pub(crate) const PACK_USAGE: &str = "\
usage: cargo xtask card [options]

  --output DIR       the folder to write, with DIR.tar.xz beside it [default: target/card]
  --device NAME      what is measured there: cuda, vulkan, tch:cuda:0, flex, cube-cpu, …; may be repeated
                     [default: cuda and vulkan]
  --libtorch PYTHON  a Python with the version of torch that is there; a device of tch needs it
  --wheels DIR       wheels that are carried along for Python, such as peft and transformers
  --shapes NAME      full or tiny, which shows that everything runs and measures nothing [default: full]
  --deadline N       seconds that the visit may take [default: 540]
  --row-seconds N    seconds that one measurement may take [default: 100]
  --plain            leaves the feature fusion out
  --rehearse         then unpacks it in a temporary folder and runs it on this machine
  --python PATH      the Python of the rehearsal [default: python3]
  --no-torch         the rehearsal goes without torch

On the machine with the card: unpack, and start run.sh in the folder.";

pub(crate) const VISIT_USAGE: &str = "\
usage: run.sh [options]

  --results DIR      where card.md and card.json are written [default: results, in this folder]
  --python PATH      a Python with torch, transformers and peft [default: python3]
  --no-torch         goes without torch: no comparison, and no share of the peak
  --deadline N       seconds that it may take
  --row-seconds N    seconds that one measurement may take";

/// Which shapes are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shapes {
    Full,
    Tiny,
}

impl Shapes {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Tiny => "tiny",
        }
    }

    fn parse(name: &str) -> Result<Self, String> {
        [Self::Full, Self::Tiny]
            .into_iter()
            .find(|it| it.name() == name)
            .ok_or_else(|| format!("`--shapes {name}`: there are full and tiny"))
    }
}

/// What is packed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Pack {
    pub(crate) output: PathBuf,
    pub(crate) devices: Vec<String>,
    pub(crate) libtorch: Option<PathBuf>,
    pub(crate) wheels: Option<PathBuf>,
    pub(crate) shapes: Shapes,
    pub(crate) deadline: u64,
    pub(crate) row_seconds: u64,
    pub(crate) plain: bool,
    pub(crate) rehearse: bool,
    pub(crate) python: PathBuf,
    pub(crate) no_torch: bool,
}

/// Leaves a minute of ten for coming and going.
const DEADLINE: u64 = 540;
const ROW_SECONDS: u64 = 100;

impl Pack {
    pub(crate) fn parse(words: &[String]) -> Result<Self, String> {
        let mut pack = Self {
            output: crate::root().join("target").join("card"),
            devices: Vec::new(),
            libtorch: None,
            wheels: None,
            shapes: Shapes::Full,
            deadline: DEADLINE,
            row_seconds: ROW_SECONDS,
            plain: false,
            rehearse: false,
            python: PathBuf::from("python3"),
            no_torch: false,
        };
        let mut python = None;
        let mut words = words.iter().map(String::as_str);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("`{word}` needs a value"));
            match word {
                "--output" => pack.output = PathBuf::from(value()?),
                "--device" => pack.devices.push(known_device(value()?)?),
                "--libtorch" => pack.libtorch = Some(PathBuf::from(value()?)),
                "--wheels" => pack.wheels = Some(PathBuf::from(value()?)),
                "--shapes" => pack.shapes = Shapes::parse(value()?)?,
                "--deadline" => pack.deadline = number(word, value()?)?,
                "--row-seconds" => pack.row_seconds = number(word, value()?)?,
                "--plain" => pack.plain = true,
                "--rehearse" => pack.rehearse = true,
                "--python" => python = Some(PathBuf::from(value()?)),
                "--no-torch" => pack.no_torch = true,
                other => return Err(format!("`{other}` is unknown")),
            }
        }
        if !pack.rehearse && (python.is_some() || pack.no_torch) {
            return Err("`--python` and `--no-torch` are for `--rehearse`; run.sh takes them, too".to_owned());
        }
        if pack.devices.is_empty() {
            pack.devices = ["cuda", "vulkan"].map(str::to_owned).to_vec();
        }
        if pack.libtorch.is_none() && pack.devices.iter().any(|it| crate::backend_of(it) == "tch") {
            return Err("a device of tch needs `--libtorch PYTHON`, with the version of torch that is there".to_owned());
        }
        pack.python = python.unwrap_or(pack.python);
        Ok(pack)
    }
}

/// What is measured, and where it is written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Visit {
    /// What was carried here.
    pub(crate) folder: PathBuf,
    pub(crate) results: PathBuf,
    pub(crate) devices: Vec<String>,
    pub(crate) shapes: Shapes,
    pub(crate) deadline: u64,
    pub(crate) row_seconds: u64,
    pub(crate) python: Option<PathBuf>,
}

impl Visit {
    /// The first word is the folder; `run.sh` says it, and what was packed. A later word takes the place of an earlier
    /// one.
    pub(crate) fn parse(words: &[String]) -> Result<Self, String> {
        let mut words = words.iter().map(String::as_str);
        let folder = PathBuf::from(words.next().ok_or("the folder is missing: start run.sh")?);
        let mut visit = Self {
            results: folder.join("results"),
            folder,
            devices: Vec::new(),
            shapes: Shapes::Full,
            deadline: DEADLINE,
            row_seconds: ROW_SECONDS,
            python: Some(PathBuf::from("python3")),
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("`{word}` needs a value"));
            match word {
                "--results" => visit.results = PathBuf::from(value()?),
                "--device" => visit.devices.push(known_device(value()?)?),
                "--shapes" => visit.shapes = Shapes::parse(value()?)?,
                "--deadline" => visit.deadline = number(word, value()?)?,
                "--row-seconds" => visit.row_seconds = number(word, value()?)?,
                "--python" => visit.python = Some(PathBuf::from(value()?)),
                "--no-torch" => visit.python = None,
                other => return Err(format!("`{other}` is unknown")),
            }
        }
        if visit.devices.is_empty() { Err("no `--device` is named: start run.sh".to_owned()) } else { Ok(visit) }
    }
}

fn known_device(name: &str) -> Result<String, String> {
    if is_backend(crate::backend_of(name)) {
        return Ok(name.to_owned());
    }
    Err(format!("`--device {name}` is unknown; `peft devices` lists names"))
}

fn number(word: &str, value: &str) -> Result<u64, String> {
    match value.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("`{word} {value}`: expected a whole number above 0")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    fn pack(line: &str) -> Result<Pack, String> {
        Pack::parse(&words(line))
    }

    fn visit(line: &str) -> Result<Visit, String> {
        Visit::parse(&words(line))
    }

    #[test]
    fn without_words_a_card_of_nvidia_is_meant() {
        let all = pack("").unwrap();
        assert_eq!((&all.devices[..], all.deadline, all.shapes), (&words("cuda vulkan")[..], 540, Shapes::Full));
        let some = pack("--device flex --shapes tiny --rehearse --no-torch --deadline 60").unwrap();
        assert_eq!((&some.devices[..], some.deadline, some.shapes), (&words("flex")[..], 60, Shapes::Tiny));
        assert!(some.rehearse && some.no_torch);
    }

    #[test]
    fn wrong_words_are_refused() {
        for (line, part) in [
            ("--device abacus", "peft devices"),
            ("--device", "needs a value"),
            ("--shapes huge", "full and tiny"),
            ("--deadline 0", "above 0"),
            ("--no-torch", "--rehearse"),
            ("--python python3", "--rehearse"),
            ("--device tch:cuda:0", "--libtorch"),
            ("fly", "unknown"),
        ] {
            let message = pack(line).unwrap_err();
            assert!(message.contains(part), "{line}: {message}");
        }
        assert!(pack("--device tch:cuda:0 --libtorch python3").is_ok());
    }

    #[test]
    fn what_is_typed_after_run_sh_counts() {
        let it = visit("/card --device cuda --device vulkan --deadline 540 --deadline 60 --no-torch").unwrap();
        assert_eq!((&it.devices[..], it.deadline, it.python), (&words("cuda vulkan")[..], 60, None));
        assert_eq!(it.results, PathBuf::from("/card/results"));
        assert!(visit("").is_err());
        assert!(visit("/card --deadline 60").unwrap_err().contains("--device"));
    }
}

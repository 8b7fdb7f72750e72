//! What the machine's Python has, as `card_torch.py` says it.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// What shares are taken of, in operations a second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Peaks {
    pub(crate) bf16: Option<f64>,
    pub(crate) f32: Option<f64>,
    pub(crate) tf32: Option<f64>,
}

impl Peaks {
    /// The peak for a type of computation. In single precision that of tf32 where there is one, for all programs may use it.
    pub(crate) fn of(&self, bf16: bool) -> Option<f64> {
        if bf16 { self.bf16 } else { self.tf32.or(self.f32) }
    }
}

/// A Python, or why there is none.
#[derive(Debug, Default)]
pub(crate) struct Probe {
    /// Versions in one line.
    pub(crate) about: String,
    /// Why nothing can be compared with torch; `None` if it can.
    pub(crate) missing: Option<String>,
    /// Whether torch sees a card.
    pub(crate) has_card: bool,
    pub(crate) peaks: Peaks,
    /// Where torch's own libraries are.
    pub(crate) libraries: Option<PathBuf>,
    pub(crate) libdevice: Option<PathBuf>,
    /// What could not be measured.
    pub(crate) troubles: Vec<String>,
}

impl Probe {
    /// There is no torch, for this reason.
    pub(crate) fn without(reason: &str) -> Self {
        Self { about: reason.to_owned(), missing: Some(reason.to_owned()), ..Self::default() }
    }

    /// Of what the script said, though it may have ended early.
    pub(crate) fn parse(said: &str) -> Self {
        let pairs = || said.lines().filter_map(|line| line.split_once(' '));
        let values: BTreeMap<&str, &str> = pairs().collect();
        let number = |name| values.get(name).and_then(|it: &&str| it.parse().ok());
        let path = |name| values.get(name).map(PathBuf::from);
        let names = ["python", "torch", "cuda", "transformers", "peft", "triton"];
        let about = names.iter().filter_map(|name| Some(format!("{name} {}", values.get(name)?)));
        let is_there = |name: &str| values.get(name).is_some_and(|it| *it != "missing");
        let mut lacks: Vec<String> = ["torch", "transformers", "peft"]
            .iter()
            .filter(|it| !is_there(it))
            .map(|it| format!("{it} is missing"))
            .collect();
        // The script says it behind the import.
        if lacks.is_empty() && !values.contains_key("device") {
            lacks.push("torch cannot be imported".to_owned());
        }
        Self {
            about: about.collect::<Vec<_>>().join(", "),
            missing: (!lacks.is_empty()).then(|| format!("in this Python {}", lacks.join(", "))),
            has_card: values.get("device") == Some(&"cuda"),
            peaks: Peaks { bf16: number("gemm_bf16"), f32: number("gemm_f32"), tf32: number("gemm_tf32") },
            libraries: path("libraries"),
            libdevice: path("libdevice"),
            troubles: pairs().filter(|it| it.0 == "trouble").map(|it| it.1.to_owned()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_python_says_is_understood() {
        let said = "python 3.12.1\ntorch 2.11.0+cu130\ntransformers 5.23\npeft 0.21\ntriton 3.6\ndevice cuda\ncuda 13.0\n\
            libraries /p/torch/lib\nlibdevice /p/triton/libdevice.10.bc\ngemm_bf16 7.5e14\ngemm_f32 5e13\n\
            trouble gemm_tf32: no memory\n";
        let probe = Probe::parse(said);
        assert_eq!(
            probe.about,
            "python 3.12.1, torch 2.11.0+cu130, cuda 13.0, transformers 5.23, peft 0.21, triton 3.6"
        );
        assert_eq!((probe.missing, probe.has_card), (None, true));
        assert_eq!((probe.peaks.of(true), probe.peaks.of(false)), (Some(7.5e14), Some(5e13)));
        assert_eq!(probe.troubles, ["gemm_tf32: no memory"]);
        assert_eq!(probe.libdevice, Some(PathBuf::from("/p/triton/libdevice.10.bc")));
        let tf32 = Peaks { tf32: Some(2.0), f32: Some(1.0), bf16: None };
        assert_eq!((tf32.of(true), tf32.of(false)), (None, Some(2.0)));
    }

    #[test]
    fn packages_that_are_missing_are_named() {
        let missing = |said: &str| Probe::parse(said).missing.expect("something is missing");
        let two = "torch 2.11\ntransformers missing\npeft missing\ndevice cuda";
        assert_eq!(missing(two), "in this Python transformers is missing, peft is missing");
        assert!(missing("").contains("torch is missing"));
        let broken = "torch 2.11\ntransformers 5.23\npeft 0.21\nTraceback (most recent call last):";
        assert_eq!(missing(broken), "in this Python torch cannot be imported");
    }
}

//! How far a run has come, as a checkpoint holds it.

use serde::{Deserialize, Serialize};

/// How far a run has come.
///
/// Numbers that a resumed run computes with are written as text: JSON's reader may miss their last bit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct TrainerState {
    pub(crate) step: usize,
    /// Steps of the whole run.
    pub(crate) total: usize,
    pub(crate) tokens: u64,
    pub(crate) seconds: f64,
    /// Loss of the last step.
    #[serde(with = "exact")]
    pub(crate) last_loss: f64,
    /// Lowest loss of an evaluation.
    #[serde(with = "exact::option")]
    pub(crate) best: Option<f64>,
    pub(crate) best_step: usize,
    pub(crate) evaluations_without_gain: usize,
    pub(crate) since_line: SinceLine,
    /// Whether the evaluation of this step was interrupted: the run goes on with it.
    #[serde(default)]
    pub(crate) owes_evaluation: bool,
}

/// What was done since the last line of the log.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct SinceLine {
    #[serde(with = "exact")]
    loss: f64,
    steps: usize,
    tokens: u64,
    /// Of training alone.
    seconds: f64,
}

impl SinceLine {
    pub(crate) fn add_step(&mut self, tokens: u64, seconds: f64) {
        self.steps += 1;
        self.tokens += tokens;
        self.seconds += seconds;
    }

    /// The loss of a step, which is known later.
    pub(crate) fn add_loss(&mut self, loss: f64) {
        self.loss += loss;
    }

    pub(crate) fn add_seconds(&mut self, seconds: f64) {
        self.seconds += seconds;
    }

    pub(crate) fn mean_loss(&self) -> f64 {
        self.loss / self.steps.max(1) as f64
    }

    pub(crate) fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.seconds.max(1e-9)
    }
}

/// Numbers as text, from which the same numbers come back.
mod exact {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(number: &f64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(number)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }

    pub(super) mod option {
        use super::{Deserialize, Deserializer, Error, Serializer};

        pub(in super::super) fn serialize<S: Serializer>(number: &Option<f64>, to: S) -> Result<S::Ok, S::Error> {
            match number {
                Some(number) => to.collect_str(number),
                None => to.serialize_none(),
            }
        }

        pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
            let text = Option::<String>::deserialize(from)?;
            text.map(|it| it.parse().map_err(D::Error::custom)).transpose()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An evaluation between two steps is no time of training.
    #[test]
    fn a_line_counts_what_its_steps_took() {
        let mut line = SinceLine::default();
        line.add_step(30, 0.5);
        line.add_step(50, 1.0);
        line.add_loss(1.0);
        line.add_loss(4.0);
        line.add_seconds(0.5);
        assert_eq!((line.mean_loss(), line.tokens_per_second()), (2.5, 40.0));
    }

    #[test]
    fn numbers_come_back_to_the_last_bit() {
        let mut generator = 1u64;
        for _ in 0..2000 {
            generator = generator.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let number = f64::from_bits(generator);
            if !number.is_finite() {
                continue;
            }
            let state = TrainerState { last_loss: number, best: Some(number), ..TrainerState::default() };
            let text = serde_json::to_string(&state).unwrap();
            let back: TrainerState = serde_json::from_str(&text).unwrap();
            assert_eq!(
                (back.last_loss.to_bits(), back.best.map(f64::to_bits)),
                (number.to_bits(), Some(number.to_bits()))
            );
        }
        let state = TrainerState::default();
        assert_eq!(serde_json::from_str::<TrainerState>(&serde_json::to_string(&state).unwrap()).unwrap(), state);
    }
}

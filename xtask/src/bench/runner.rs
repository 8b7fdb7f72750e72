//! A worker process and the conversation with it, which `peft/benches/measure/main.rs` describes.

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

/// A running worker, loaded and warmed up.
#[derive(Debug)]
pub(crate) struct Runner {
    pub(crate) name: String,
    child: Child,
    /// Closed when the worker is to leave.
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
    pub(crate) trainable: u64,
    /// Loss or logit of the first step.
    pub(crate) first_value: f64,
    load: f64,
    cold_start: f64,
    seconds: Vec<f64>,
}

/// What a worker came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Seconds that loading the base took.
    pub(crate) load: f64,
    /// Seconds from the start of the process to the end of its first step.
    pub(crate) cold_start: f64,
    /// Seconds of each step after the first.
    pub(crate) seconds: Vec<f64>,
    pub(crate) peak_bytes: u64,
}

impl Runner {
    /// Starts a worker and has it load and do its first step, which is not counted.
    pub(crate) fn start(mut command: Command, name: &str) -> Result<Self, String> {
        let begun = Instant::now();
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.map_err(|error| format!("cannot start {:?}: {error}", command.get_program()))?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let output = output.map(|it| BufReader::new(it).lines()).ok_or("a worker without output")?;
        let mut runner = Self {
            name: name.to_owned(),
            child,
            input,
            output,
            trainable: 0,
            first_value: f64::NAN,
            load: f64::NAN,
            cold_start: f64::NAN,
            seconds: Vec::new(),
        };
        let [load, trainable] = runner.hear("loaded")?;
        runner.load = load;
        runner.trainable = trainable as u64;
        runner.first_value = runner.step()?;
        runner.cold_start = begun.elapsed().as_secs_f64();
        runner.seconds.clear();
        Ok(runner)
    }

    /// Has the worker do a step; the loss.
    pub(crate) fn step(&mut self) -> Result<f64, String> {
        let gone = |error| format!("{} is gone: {error}", self.name);
        self.input.as_mut().ok_or("a worker without input")?.write_all(b"step\n").map_err(gone)?;
        let [seconds, value] = self.hear("step")?;
        self.seconds.push(seconds);
        Ok(value)
    }

    /// Has the worker leave.
    pub(crate) fn finish(mut self) -> Result<Outcome, String> {
        drop(self.input.take());
        let [peak] = self.hear("peak")?;
        let status = self.child.wait().map_err(|error| format!("{} is lost: {error}", self.name))?;
        if !status.success() {
            return Err(format!("{} failed: {status}", self.name));
        }
        let seconds = std::mem::take(&mut self.seconds);
        Ok(Outcome { load: self.load, cold_start: self.cold_start, seconds, peak_bytes: peak as u64 })
    }

    fn hear<const N: usize>(&mut self, word: &str) -> Result<[f64; N], String> {
        let line = match self.output.next() {
            Some(Ok(line)) => line,
            Some(Err(error)) => return Err(format!("{} cannot be heard: {error}", self.name)),
            None => return Err(format!("{} left early; its own message is above", self.name)),
        };
        numbers(&line, word).ok_or_else(|| format!("{} says `{line}`, expected `{word}`", self.name))
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        // After an error; one that has left on its own is not there to be ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The numbers behind a word.
fn numbers<const N: usize>(line: &str, word: &str) -> Option<[f64; N]> {
    let rest = line.strip_prefix(word)?;
    let numbers: Option<Vec<f64>> = rest.split_whitespace().map(|it| it.parse().ok()).collect();
    numbers?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_word_and_its_numbers() {
        assert_eq!(numbers("step 0.5 10.25", "step"), Some([0.5, 10.25]));
        assert_eq!(numbers::<2>("step 0.5", "step"), None);
        assert_eq!(numbers::<1>("peak many", "peak"), None);
        assert_eq!(numbers::<1>("loaded 1", "peak"), None);
    }
}

//! A worker process and the conversation with it, which `peft/benches/measure/main.rs` describes.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// A running worker, loaded and warmed up.
#[derive(Debug)]
pub(crate) struct Runner {
    pub(crate) name: String,
    child: Child,
    /// Closed when the worker is to leave.
    input: Option<ChildStdin>,
    /// What it says, line by line; a thread listens, so that waiting can have an end.
    output: Receiver<io::Result<String>>,
    /// When it is given up.
    until: Option<Instant>,
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
    /// What it had reserved on the card; 0 where that is not known.
    pub(crate) card_bytes: u64,
}

impl Runner {
    /// Starts a worker and has it load and do its first step, which is not counted.
    pub(crate) fn start(command: Command, name: &str) -> Result<Self, String> {
        Self::start_until(command, name, None)
    }

    /// The same, with an end to all waiting: at `until` the worker is ended.
    pub(crate) fn start_until(mut command: Command, name: &str, until: Option<Instant>) -> Result<Self, String> {
        let begun = Instant::now();
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.map_err(|error| format!("cannot start {:?}: {error}", command.get_program()))?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let lines = BufReader::new(output.ok_or("a worker without output")?).lines();
        let (heard, output) = mpsc::channel();
        // Ends when the worker does, or when nobody listens any more.
        thread::spawn(move || lines.into_iter().all(|line| heard.send(line).is_ok()));
        let mut runner = Self {
            name: name.to_owned(),
            child,
            input,
            output,
            until,
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

    /// Has the worker do a step and count what it launches on a card: how many kernels, and how many of each, most first.
    pub(crate) fn count(&mut self) -> Result<(u64, Vec<(String, u64)>), String> {
        let gone = |error| format!("{} is gone: {error}", self.name);
        self.input.as_mut().ok_or("a worker without input")?.write_all(b"count\n").map_err(gone)?;
        let line = self.line("launches")?;
        let unclear = || format!("{} said `{line}`", self.name);
        let kernels = launches(&line).ok_or_else(unclear)?;
        let all = kernels.iter().map(|it| it.1).sum();
        let [_, _] = self.hear("step")?;
        Ok((all, kernels))
    }

    /// Steps that are not counted: programs for cards try their kernels in the first few.
    pub(crate) fn warm_up(&mut self, steps: usize) -> Result<(), String> {
        let counted = self.seconds.len();
        for _ in 0..steps {
            self.step()?;
        }
        self.seconds.truncate(counted);
        Ok(())
    }

    /// Has the worker leave.
    pub(crate) fn finish(mut self) -> Result<Outcome, String> {
        drop(self.input.take());
        let [peak, card] = self.hear("peak")?;
        let status = self.child.wait().map_err(|error| format!("{} is lost: {error}", self.name))?;
        if !status.success() {
            return Err(format!("{} failed: {status}", self.name));
        }
        let seconds = std::mem::take(&mut self.seconds);
        Ok(Outcome {
            load: self.load,
            cold_start: self.cold_start,
            seconds,
            peak_bytes: peak as u64,
            card_bytes: card as u64,
        })
    }

    fn hear<const N: usize>(&mut self, word: &str) -> Result<[f64; N], String> {
        let line = self.line(word)?;
        numbers(&line, word).ok_or_else(|| format!("{} says `{line}`, expected `{word}`", self.name))
    }

    /// What it says next, which should begin with a word.
    fn line(&mut self, word: &str) -> Result<String, String> {
        // Without an end: longer than anybody waits.
        let patience = self
            .until
            .map_or(Duration::from_secs(u64::from(u32::MAX)), |until| until.saturating_duration_since(Instant::now()));
        match self.output.recv_timeout(patience) {
            Ok(Ok(line)) => Ok(line),
            Ok(Err(error)) => Err(format!("{} cannot be heard: {error}", self.name)),
            Err(RecvTimeoutError::Timeout) => {
                Err(format!("{} did not say `{word}` in the time that it had", self.name))
            }
            Err(RecvTimeoutError::Disconnected) => Err(format!("{} left early; its own message is above", self.name)),
        }
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

/// How often each kernel was launched, most often first.
fn launches(line: &str) -> Option<Vec<(String, u64)>> {
    let kernels = line.strip_prefix("launches ")?.split("; ");
    let kernel = |it: &str| it.split_once(' ').and_then(|(count, name)| Some((name.to_owned(), count.parse().ok()?)));
    let mut kernels: Vec<(String, u64)> = kernels.map(kernel).collect::<Option<_>>()?;
    kernels.sort_by_key(|it| std::cmp::Reverse(it.1));
    Some(kernels)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker that says `lines` at once, and then hears nothing.
    #[cfg(unix)]
    fn worker(lines: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{lines}; exec sleep 100")]);
        command
    }

    #[cfg(unix)]
    #[test]
    fn a_worker_that_says_nothing_is_given_up_in_time() {
        let begun = Instant::now();
        let until = Some(begun + Duration::from_millis(200));
        let error = Runner::start_until(worker("echo loaded 1 2"), "a sleeper", until).unwrap_err();
        assert_eq!(error, "a sleeper did not say `step` in the time that it had");
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    }

    #[test]
    fn kernels_are_counted_by_name() {
        let counted = launches("launches 3 matmul; 12 norm<f32, 4>").unwrap();
        assert_eq!(counted, [("norm<f32, 4>".to_owned(), 12), ("matmul".to_owned(), 3)]);
        assert!(launches("launches none").is_none() && launches("step 1 2").is_none());
    }

    #[cfg(unix)]
    #[test]
    fn steps_that_warm_up_are_not_counted() {
        let said = "echo loaded 1 2; echo step 9 4; echo step 8 4; echo step 7 3; echo step 1 2";
        let mut runner = Runner::start(worker(said), "a worker").unwrap();
        runner.warm_up(2).unwrap();
        runner.step().unwrap();
        assert_eq!((runner.first_value, runner.trainable, &runner.seconds[..]), (4.0, 2, &[1.0][..]));
    }

    #[test]
    fn a_line_is_a_word_and_its_numbers() {
        assert_eq!(numbers("step 0.5 10.25", "step"), Some([0.5, 10.25]));
        assert_eq!(numbers::<2>("step 0.5", "step"), None);
        assert_eq!(numbers::<1>("peak many", "peak"), None);
        assert_eq!(numbers::<1>("loaded 1", "peak"), None);
    }
}

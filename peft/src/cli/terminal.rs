//! Standard output and standard error, which may be closed, or full.
//!
//! `println!` panics on either. Every command prints through here: [`say!`] gives an error that ends a command, and a
//! command whose reader has gone ends without a word, as others do that the system ends with `SIGPIPE`.

use std::fmt::Display;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::OnceLock;

use peft_core::{PeftError, Result, printable};

/// What the output is called in an error.
pub(super) const STDOUT: &str = "standard output";

/// Exit code of a command whose reader has gone: what a shell shows for `SIGPIPE`, 128 + 13.
pub(super) const READER_GONE: u8 = 141;

/// Set where another process of the run tells how it goes: what errors of this one begin with.
static QUIET: OnceLock<String> = OnceLock::new();

/// From here on only errors are printed, and by `name`.
pub(super) fn be_quiet(name: Option<String>) {
    let _ = QUIET.set(name.unwrap_or_default());
}

/// Whether another process tells how the run goes.
pub(super) fn is_quiet() -> bool {
    QUIET.get().is_some()
}

/// Prints a line on standard output. Takes what `println!` takes, and is a [`Result`].
macro_rules! say {
    ($($arg:tt)*) => { $crate::cli::terminal::line(format_args!($($arg)*)) };
}
pub(super) use say;

/// Prints a line on standard output. Names in it may come from elsewhere: none moves the cursor.
pub(super) fn line(text: impl Display) -> Result<()> {
    let text = printable(&text.to_string());
    written(|out| writeln!(out, "{text}"))
}

/// Prints a part of a text, at once. A file or another program gets it as it is, a terminal what it can show.
pub(super) fn part(text: impl Display) -> Result<()> {
    let text = text.to_string();
    let text = if io::stdout().is_terminal() { printable(&text) } else { text };
    written(|out| write!(out, "{text}"))
}

fn written(write: impl FnOnce(&mut io::StdoutLock<'_>) -> io::Result<()>) -> Result<()> {
    if is_quiet() {
        return Ok(());
    }
    let mut out = io::stdout().lock();
    write(&mut out).and_then(|()| out.flush()).map_err(PeftError::io("write", STDOUT))
}

/// Prints a line on standard error. If nobody can read it, nobody can be told.
pub(super) fn complain(text: impl Display) {
    if is_quiet() {
        return;
    }
    let _ = writeln!(io::stderr().lock(), "{}", printable(&text.to_string()));
}

/// Standard error for the log, which is lost if nobody reads it.
pub(super) struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !is_quiet() {
            let _ = io::stderr().lock().write_all(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether an error says that nobody reads standard output any more.
fn is_reader_gone(error: &PeftError) -> bool {
    matches!(error, PeftError::Io { path, source, .. }
        if path == Path::new(STDOUT) && source.kind() == ErrorKind::BrokenPipe)
}

/// Says what went wrong, and gives the exit code for it.
pub(super) fn failed(error: &PeftError) -> ExitCode {
    if is_reader_gone(error) {
        return ExitCode::from(READER_GONE);
    }
    let name = QUIET.get().map(|it| format!("{it}: ")).unwrap_or_default();
    let _ = writeln!(io::stderr().lock(), "{}", printable(&format!("{name}error: {error}")));
    ExitCode::FAILURE
}

/// Standard output of a run, whose work goes on without it.
#[derive(Debug, Default)]
pub(super) struct Steady {
    lost: Option<PeftError>,
}

impl Steady {
    /// Prints a line, as long as that is possible.
    pub(super) fn line(&mut self, text: impl Display) {
        if self.lost.is_some() {
            return;
        }
        if let Err(error) = line(text) {
            if !is_reader_gone(&error) {
                complain(format_args!("warning: {error}; the run goes on"));
            }
            self.lost = Some(error);
        }
    }

    /// What became of the output, when the work is done: that nobody wanted to read it is no failure.
    pub(super) fn end(self) -> Result<()> {
        self.lost.filter(|it| !is_reader_gone(it)).map_or(Ok(()), Err)
    }
}

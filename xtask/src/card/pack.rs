//! The folder that is carried to the machine with the card: built, packed, measured and, if asked for, tried here.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::options::Pack;
use crate::bench::{TempFolder, built, torch_script, worker_build};

/// What may be carried, in bytes of the archive.
const LIMIT: u64 = 64_000_000;

pub(crate) fn run(pack: &Pack) -> Result<(), String> {
    let folder = &pack.output;
    clear(folder)?;
    let bin = folder.join("bin");
    fs::create_dir_all(&bin).map_err(|error| format!("cannot make {}: {error}", bin.display()))?;
    let (tch, cubes): (Vec<&str>, Vec<&str>) =
        pack.devices.iter().map(|it| crate::backend_of(it)).partition(|it| *it == "tch");
    if !cubes.is_empty() {
        let mut cargo = worker_build();
        cargo.args(["--no-default-features", "--features", &features(&cubes, pack.plain)]);
        // The newest interface of CUDA is newer than most drivers, and the card's machine has what it has.
        if env::var_os("CUDARC_CUDA_VERSION").is_none() {
            cargo.env("CUDARC_CUDA_VERSION", "13000");
        }
        place(&built(cargo)?, &bin.join("worker"))?;
    }
    if let (Some(python), false) = (&pack.libtorch, tch.is_empty()) {
        let mut cargo = worker_build();
        cargo.args(["--no-default-features", "--features", &features(&tch, true)]);
        // torch-sys asks the first `python3` of the path where its torch is, and takes any version if it must.
        let first = python.parent().map(Path::to_owned).into_iter();
        let path = env::var_os("PATH").unwrap_or_default();
        let path = env::join_paths(first.chain(env::split_paths(&path)));
        cargo.env("PATH", path.map_err(|error| format!("{}: {error}", python.display()))?);
        cargo.envs([("LIBTORCH_USE_PYTORCH", "1"), ("LIBTORCH_BYPASS_VERSION_CHECK", "1")]);
        place(&built(cargo)?, &bin.join("worker-tch"))?;
    }
    let own = env::current_exe().map_err(|error| format!("cannot tell where xtask lies: {error}"))?;
    place(&own, &bin.join("xtask"))?;
    let script = torch_script();
    copy(&script, &folder.join("peft_torch.py"))?;
    copy(&script.with_file_name("card_torch.py"), &folder.join("card_torch.py"))?;
    if let Some(wheels) = &pack.wheels {
        copy_wheels(wheels, &folder.join("wheels"))?;
    }
    let run = folder.join("run.sh");
    fs::write(&run, script_of(pack)).map_err(|error| format!("cannot write {}: {error}", run.display()))?;
    do_it(Command::new("chmod").arg("+x").arg(&run))?;

    let archive = compress(folder)?;
    let sizes = sizes(folder)?;
    let packed = size(&archive)?;
    println!("{}", told(packed, &sizes));
    within_limit(packed, &sizes)?;
    println!("packed: {}", archive.display());
    if let Some((major, minor)) = glibc_of(&bin)? {
        println!("the machine needs glibc {major}.{minor} or later (`ldd --version`), and {}", libraries(&bin)?);
    }
    if pack.rehearse { rehearse(pack, &archive) } else { Ok(()) }
}

/// What the worker has: LoRA and nothing else, the processor that makes the weights, and the devices.
fn features(backends: &[&str], plain: bool) -> String {
    let mut features = vec!["lora", "cli", "flex"];
    features.extend(backends);
    // Burn's defaults for cards. They are of no use for the processor.
    if backends.iter().any(|it| *it != "flex") {
        features.push("autotune");
        if !plain {
            features.push("fusion");
        }
    }
    let mut seen = Vec::new();
    features.retain(|it| {
        let is_new = !seen.contains(it);
        seen.push(*it);
        is_new
    });
    features.join(",")
}

/// What is started on the machine with the card.
fn script_of(pack: &Pack) -> String {
    let devices: String = pack.devices.iter().map(|it| format!(" --device {it}")).collect();
    format!(
        "#!/bin/sh\n# Measures training steps on the card of this machine and writes a table into results/: ./run.sh --help\n\
        set -eu\nhere=$(cd \"$(dirname \"$0\")\" && pwd)\nexec \"$here/bin/xtask\" card visit \"$here\"{devices} --shapes {} \
        --deadline {} --row-seconds {} \"$@\"\n",
        pack.shapes.name(),
        pack.deadline,
        pack.row_seconds,
    )
}

/// Makes room for the folder, but only where another one of its kind was.
fn clear(folder: &Path) -> Result<(), String> {
    let Ok(mut entries) = fs::read_dir(folder) else { return Ok(()) };
    if entries.next().is_some() && !folder.join("run.sh").is_file() {
        return Err(format!("{} holds something else; name an empty folder by `--output`", folder.display()));
    }
    fs::remove_dir_all(folder).map_err(|error| format!("cannot remove {}: {error}", folder.display()))
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    fs::copy(from, to).map(drop).map_err(|error| format!("cannot copy {} to {}: {error}", from.display(), to.display()))
}

/// A program without its symbols, which nobody reads there.
fn place(from: &Path, to: &Path) -> Result<(), String> {
    copy(from, to)?;
    do_it(Command::new("strip").arg(to))
}

fn copy_wheels(from: &Path, to: &Path) -> Result<(), String> {
    let cannot = |error: std::io::Error| format!("cannot read {}: {error}", from.display());
    fs::create_dir_all(to).map_err(|error| format!("cannot make {}: {error}", to.display()))?;
    let mut any = false;
    for entry in fs::read_dir(from).map_err(cannot)? {
        let path = entry.map_err(cannot)?.path();
        if let (Some(name), true) = (path.file_name(), path.extension().is_some_and(|it| it == "whl")) {
            copy(&path, &to.join(name))?;
            any = true;
        }
    }
    if any { Ok(()) } else { Err(format!("{} has no wheels (*.whl)", from.display())) }
}

/// The shared libraries that these programs name; those of drivers are looked for when they run.
fn libraries(bin: &Path) -> Result<String, String> {
    let cannot = |error: std::io::Error| format!("cannot read {}: {error}", bin.display());
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(bin).map_err(cannot)? {
        let output = Command::new("readelf").arg("-d").arg(entry.map_err(cannot)?.path()).output();
        let output = output.map_err(|error| format!("cannot start readelf: {error}"))?;
        names.extend(needed(&String::from_utf8_lossy(&output.stdout)));
    }
    Ok(names.into_iter().collect::<Vec<_>>().join(", "))
}

/// Names of libraries in what `readelf -d` says, in whatever language.
fn needed(said: &str) -> Vec<String> {
    let name = |line: &str| Some(line.split_once('[')?.1.split_once(']')?.0.to_owned());
    said.lines().filter(|it| it.contains("(NEEDED)")).filter_map(name).collect()
}

/// The newest version of glibc that one of these programs names.
fn glibc_of(bin: &Path) -> Result<Option<(u32, u32)>, String> {
    let cannot = |error: std::io::Error| format!("cannot read {}: {error}", bin.display());
    let mut newest = None;
    for entry in fs::read_dir(bin).map_err(cannot)? {
        newest = newest.max(glibc_in(&fs::read(entry.map_err(cannot)?.path()).map_err(cannot)?));
    }
    Ok(newest)
}

fn glibc_in(program: &[u8]) -> Option<(u32, u32)> {
    let mark = b"GLIBC_";
    let starts = program.windows(mark.len()).enumerate().filter(|it| it.1 == mark).map(|it| it.0 + mark.len());
    let version = |at: usize| {
        let text = program[at..].iter().take_while(|it| it.is_ascii_digit() || **it == b'.').map(|it| char::from(*it));
        let text: String = text.collect();
        let mut parts = text.split('.').map(|it| it.parse().ok());
        Some((parts.next()??, parts.next()??))
    };
    starts.filter_map(version).max()
}

fn do_it(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{program} failed: {status}")),
        Err(error) => Err(format!("cannot start {program}: {error}")),
    }
}

fn compress(folder: &Path) -> Result<PathBuf, String> {
    let (Some(parent), Some(name)) = (folder.parent(), folder.file_name()) else {
        return Err(format!("{} has no name", folder.display()));
    };
    let tar = beside(folder, ".tar");
    let mut command = Command::new("tar");
    command.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "-C"]);
    do_it(
        command.arg(if parent.as_os_str().is_empty() { Path::new(".") } else { parent }).arg("-cf").arg(&tar).arg(name),
    )?;
    do_it(Command::new("xz").args(["-9", "--force"]).arg(&tar))?;
    Ok(beside(folder, ".tar.xz"))
}

/// The name of the folder with something behind it.
fn beside(folder: &Path, ending: &str) -> PathBuf {
    let mut path = folder.as_os_str().to_owned();
    path.push(ending);
    PathBuf::from(path)
}

fn size(path: &Path) -> Result<u64, String> {
    fs::metadata(path).map(|it| it.len()).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

/// Files of the folder and of those in it, the largest first.
fn sizes(folder: &Path) -> Result<Vec<(String, u64)>, String> {
    let mut sizes = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(at) = open.pop() {
        let cannot = |error: std::io::Error| format!("cannot read {}: {error}", at.display());
        for entry in fs::read_dir(&at).map_err(cannot)? {
            let path = entry.map_err(cannot)?.path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap_or(&path).display().to_string();
                sizes.push((name, size(&path)?));
            }
        }
    }
    sizes.sort_by_key(|it| std::cmp::Reverse(it.1));
    Ok(sizes)
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn told(packed: u64, sizes: &[(String, u64)]) -> String {
    let files: String = sizes.iter().map(|it| format!("\n  {:8.2} MB  {}", megabytes(it.1), it.0)).collect();
    format!("{:.2} MB packed, of{files}", megabytes(packed))
}

fn within_limit(packed: u64, sizes: &[(String, u64)]) -> Result<(), String> {
    if packed < LIMIT {
        return Ok(());
    }
    let next = "leave a `--device` out, or carry fewer wheels";
    Err(format!("{}\nthis is not below {:.0} MB: {next}", told(packed, sizes), megabytes(LIMIT)))
}

/// Runs what was packed as it would be run there: unpacked, in another place, with nothing of this workspace in sight.
fn rehearse(pack: &Pack, archive: &Path) -> Result<(), String> {
    let there = TempFolder::new(env::temp_dir().join(format!("peft-rehearsal-{}", std::process::id())))?;
    do_it(Command::new("tar").arg("-xJf").arg(archive).arg("-C").arg(&there.0))?;
    let name = pack.output.file_name().unwrap_or_default();
    let results = there.0.join("results");
    let mut run = Command::new(there.0.join(name).join("run.sh"));
    run.arg("--results").arg(&results);
    if pack.no_torch {
        run.arg("--no-torch");
    } else {
        run.arg("--python").arg(&pack.python);
    }
    run.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", &there.0).env("TMPDIR", &there.0);
    println!("\n=== rehearsal");
    let outcome = do_it(&mut run);
    for name in ["card.md", "card.json"] {
        let ending = format!("-rehearsal{}", &name[4..]);
        let kept = beside(&pack.output, &ending);
        // A run that came to nothing has its own message.
        if copy(&results.join(name), &kept).is_ok() {
            println!("kept: {}", kept.display());
        }
    }
    outcome.map_err(|error| format!("the rehearsal failed: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(line: &str) -> Pack {
        Pack::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).expect("a command line")
    }

    #[test]
    fn a_worker_has_what_its_devices_need() {
        assert_eq!(features(&["cuda", "vulkan"], false), "lora,cli,flex,cuda,vulkan,autotune,fusion");
        assert_eq!(features(&["cuda", "cuda", "flex"], true), "lora,cli,flex,cuda,autotune");
        assert_eq!(features(&["flex"], false), "lora,cli,flex");
    }

    #[test]
    fn run_sh_says_what_was_packed_and_passes_on_what_is_typed() {
        let text = script_of(&pack("--device cuda:1 --device vulkan --shapes tiny --deadline 60"));
        assert!(text.starts_with("#!/bin/sh\n"));
        let last = text.lines().last().unwrap_or_default();
        assert_eq!(
            last,
            "exec \"$here/bin/xtask\" card visit \"$here\" --device cuda:1 --device vulkan --shapes tiny --deadline 60 \
             --row-seconds 100 \"$@\""
        );
    }

    #[test]
    fn what_is_too_large_is_refused_with_its_sizes() {
        let sizes = [("bin/worker".to_owned(), 170_000_000), ("run.sh".to_owned(), 400)];
        assert_eq!(within_limit(LIMIT - 1, &sizes), Ok(()));
        let message = within_limit(LIMIT, &sizes).unwrap_err();
        for part in ["64.00 MB packed", "170.00 MB  bin/worker", "not below 64 MB", "--device"] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn a_folder_of_something_else_is_left_alone() {
        let folder = TempFolder::new(env::temp_dir().join(format!("peft-pack-test-{}", std::process::id()))).unwrap();
        let path = folder.0.join("card");
        assert_eq!(clear(&path), Ok(()), "nothing is there");
        fs::create_dir_all(path.join("bin")).unwrap();
        assert!(clear(&path).unwrap_err().contains("--output"));
        fs::write(path.join("run.sh"), "x").unwrap();
        assert_eq!(sizes(&path).unwrap(), [("run.sh".to_owned(), 1)]);
        assert_eq!(clear(&path), Ok(()));
        assert!(!path.exists());
    }

    #[test]
    fn the_newest_glibc_is_found() {
        assert_eq!(glibc_in(b"\0GLIBC_2.9\0GLIBC_2.35\0GLIBC_2.2.5\0GLIBC_PRIVATE\0"), Some((2, 35)));
        assert_eq!(glibc_in(b"no such thing"), None);
    }

    #[test]
    fn libraries_are_found() {
        let said = " 0x0000000000000001 (NEEDED)             Shared library: [libstdc++.so.6]\n\
            \x20 0x000000000000000e (SONAME)             Library soname: [libx.so]\n";
        assert_eq!(needed(said), ["libstdc++.so.6"]);
    }

    #[test]
    fn the_archive_lies_beside_the_folder() {
        assert_eq!(beside(Path::new("target/card"), ".tar.xz"), Path::new("target/card.tar.xz"));
    }
}

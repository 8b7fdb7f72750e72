use std::path::PathBuf;

use peft_core::files::checkpoint::TensorFile;

use super::*;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/audio")
}

/// A WAV file of 16 bits a sample.
pub(crate) fn wav(samples: &[i16], rate: u32, channels: u16) -> Vec<u8> {
    let bytes: Vec<u8> = samples.iter().flat_map(|it| it.to_le_bytes()).collect();
    let mut file = b"RIFF".to_vec();
    file.extend((36 + bytes.len() as u32).to_le_bytes());
    file.extend(b"WAVEfmt \x10\0\0\0\x01\0");
    file.extend(channels.to_le_bytes());
    file.extend(rate.to_le_bytes());
    file.extend((rate * 2 * u32::from(channels)).to_le_bytes());
    file.extend((2 * channels).to_le_bytes());
    file.extend(b"\x10\0data");
    file.extend((bytes.len() as u32).to_le_bytes());
    file.extend(bytes);
    file
}

fn refusal(bytes: Vec<u8>) -> String {
    decode_bytes(bytes, "a.wav").unwrap_err().to_string()
}

/// What libsndfile 1.2.2 makes of the same files.
#[test]
fn every_format_gives_the_samples_of_the_reference() {
    let expected = TensorFile::open(folder().join("decoded.safetensors")).unwrap();
    for (name, tolerance) in [
        ("tone.wav", 0.0),
        ("tone24.wav", 1e-7),
        ("float.wav", 0.0),
        ("ulaw.wav", 0.0),
        ("tone.flac", 0.0),
        ("tone.ogg", 1e-4),
        ("tone.mp3", 1e-4),
    ] {
        let wave = decode(folder().join(name), None).unwrap();
        assert_eq!(wave.rate, 8000, "{name}");
        let length = expected.integers(&format!("{name}.length")).unwrap().iter::<i64>().next().unwrap();
        assert_eq!(wave.samples.len(), length as usize, "{name}");
        let wanted = expected.floats(name).unwrap();
        let pairs = wave.samples.iter().zip(wanted.as_slice::<f32>().unwrap());
        let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= tolerance, "{name}: off by {worst}");
        assert_eq!(probe(folder().join(name)).unwrap().seconds, Some(0.5), "{name}");
        assert_eq!(decode(folder().join(name), Some(0.1)).unwrap().samples, wave.samples[..800], "{name}");
    }
}

#[test]
fn what_is_no_recording_is_named() {
    assert!(refusal(Vec::new()).starts_with("a.wav is not usable"));
    assert!(
        refusal(b"this is no sound, but a text that is long enough to be looked at".to_vec()).contains("WAV, FLAC")
    );
    let error = decode("/nowhere/a.wav", None).unwrap_err().to_string();
    assert!(error.starts_with("cannot read /nowhere/a.wav"), "{error}");
    assert!(decode(folder(), None).unwrap_err().to_string().contains("it is no file"));
    assert!(refusal(wav(&[], 8000, 1)).contains("it holds no sample"));
}

#[test]
fn headers_that_lie_are_found_out() {
    let whole = wav(&[100; 1000], 8000, 1);
    assert_eq!(decode_bytes(whole.clone(), "a.wav").unwrap().samples.len(), 1000);
    let error = refusal(whole[..whole.len() - 600].to_vec());
    assert!(error.contains("its header promises 1000 samples, and there are 700"), "{error}");
    assert!(refusal(wav(&[1; 10], 0, 1)).contains("a.wav"));
    assert!(refusal(wav(&[1; 10], u32::MAX / 4, 1)).contains("samples in a second"));
    assert!(refusal(wav(&[1; 10], 8000, 0)).contains("a.wav"));
    // A program that writes into a pipe does not know the length.
    let mut stream = whole;
    stream[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    stream[40..44].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(decode_bytes(stream, "a.wav").unwrap().samples.len(), 1000);
}

#[test]
fn samples_that_are_no_numbers_are_refused() {
    let mut bytes = std::fs::read(folder().join("float.wav")).unwrap();
    let length = bytes.len();
    bytes[length - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(refusal(bytes).contains("sample 3999 is NaN"));
}

#[test]
fn damaged_files_are_errors_or_sounds() {
    for name in ["tone.wav", "tone.flac", "tone.ogg", "tone.mp3"] {
        let whole = std::fs::read(folder().join(name)).unwrap();
        for at in (0..whole.len()).step_by(whole.len() / 60) {
            let _ = decode_bytes(whole[..at].to_vec(), name);
            let mut damaged = whole.clone();
            damaged[at] ^= 0x5a;
            let _ = decode_bytes(damaged, name);
        }
    }
    let flac = std::fs::read(folder().join("tone.flac")).unwrap();
    let error = decode_bytes(flac[..flac.len() / 2].to_vec(), "a.flac").unwrap_err().to_string();
    assert!(error.starts_with("a.flac is not usable"), "{error}");
}

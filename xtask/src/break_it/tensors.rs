//! As much of safetensors as is needed to write a model and to find numbers that are none.

use std::path::Path;

/// A safetensors file of matrices in single precision.
pub(super) fn file(tensors: &[(String, Vec<usize>, Vec<f32>)]) -> Vec<u8> {
    let mut header = String::from("{");
    let mut data = Vec::new();
    for (at, (name, shape, values)) in tensors.iter().enumerate() {
        let start = data.len();
        data.extend(values.iter().flat_map(|it| it.to_le_bytes()));
        let comma = if at == 0 { "" } else { "," };
        header +=
            &format!(r#"{comma}"{name}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{start},{}]}}"#, data.len());
    }
    header.push('}');
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.into_bytes());
    bytes.extend(data);
    bytes
}

/// A safetensors file of one matrix of ids.
pub(super) fn ids(name: &str, ids: &[i64]) -> Vec<u8> {
    let header =
        format!(r#"{{"{name}":{{"dtype":"I64","shape":[1,{}],"data_offsets":[0,{}]}}}}"#, ids.len(), ids.len() * 8);
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.into_bytes());
    bytes.extend(ids.iter().flat_map(|it| it.to_le_bytes()));
    bytes
}

/// What is wrong with a file that ends in `.safetensors`: half written, or with a number in single precision that is none.
pub(super) fn fault(path: &Path, must_be_finite: bool) -> Option<String> {
    let wrong = |what: &str| Some(format!("{} {what}", path.display()));
    let Ok(bytes) = std::fs::read(path) else { return wrong("cannot be read") };
    let Some(length) = bytes.first_chunk::<8>().map(|it| u64::from_le_bytes(*it) as usize) else {
        return wrong("is shorter than a header");
    };
    let Some((header, data)) = bytes[8..].split_at_checked(length) else {
        return wrong("is shorter than its header says");
    };
    let header = String::from_utf8_lossy(header);
    let mut end = 0;
    for entry in header.split("\"dtype\":").skip(1) {
        let offsets = entry.split("\"data_offsets\":[").nth(1).and_then(|it| it.split(']').next()).unwrap_or_default();
        let Some((Ok(from), Ok(to))) = offsets.split_once(',').map(|(a, b)| (a.parse::<usize>(), b.parse::<usize>()))
        else {
            return wrong("has a header without offsets");
        };
        end = end.max(to);
        let Some(own) = data.get(from..to) else { return wrong("is shorter than its tensors") };
        let is_none = match entry.trim_start().get(..5) {
            Some("\"F32\"") => {
                own.chunks_exact(4).any(|it| !f32::from_le_bytes([it[0], it[1], it[2], it[3]]).is_finite())
            }
            Some("\"F16\"") => own.chunks_exact(2).any(|it| it[1] & 0x7c == 0x7c),
            Some("\"BF16") => own.chunks_exact(2).any(|it| it[1] & 0x7f == 0x7f && it[0] & 0x80 == 0x80),
            _ => false,
        };
        if must_be_finite && is_none {
            return wrong("holds numbers that are not finite");
        }
    }
    (end != data.len()).then(|| format!("{} has {} bytes of tensors instead of {end}", path.display(), data.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_found() {
        let path = std::env::temp_dir().join(format!("peft-break-test-{}.safetensors", std::process::id()));
        let write = |bytes: &[u8]| std::fs::write(&path, bytes).unwrap();
        let sound = file(&[("a".into(), vec![2, 1], vec![1.0, 2.0]), ("b".into(), vec![1], vec![3.0])]);
        write(&sound);
        assert_eq!(fault(&path, true), None);
        write(&file(&[("a".into(), vec![1], vec![f32::NAN])]));
        assert!(fault(&path, true).is_some() && fault(&path, false).is_none());
        for cut in [0, 4, 20, sound.len() - 1] {
            write(&sound[..cut]);
            assert!(fault(&path, false).is_some(), "{cut}");
        }
        write(&[sound.as_slice(), b"x"].concat());
        assert!(fault(&path, false).is_some());
        std::fs::remove_file(&path).unwrap();
    }
}

//! What the command says about devices.

use super::adapters::peft;

#[test]
fn devices_are_listed_by_the_names_that_they_are_asked_for() {
    let printed = peft(&["devices"]).unwrap();
    let json: serde_json::Value = serde_json::from_str(&peft(&["devices", "--json"]).unwrap()).unwrap();
    let found = json.as_array().unwrap();
    assert!(found.iter().any(|it| it["name"] == "flex" && it["memory"].as_u64().unwrap() > 1 << 20), "{json}");
    for it in found {
        let name = it["name"].as_str().unwrap();
        assert!(printed.lines().any(|line| line.starts_with(name)), "{name} is not in\n{printed}");
        assert!(peft::device::device(name).is_ok(), "{name}");
    }
}

#[test]
fn a_device_that_is_not_there_is_refused_before_anything_is_read() {
    let refused = |device: &str| {
        peft(&["train", "--model", "no-such-folder", "--data", "none.jsonl", "--output", "none", "--device", device])
            .unwrap_err()
    };
    assert!(refused("npu").contains("is no device"), "{}", refused("npu"));
    assert!(refused("flex:1").contains("without a number"), "{}", refused("flex:1"));
    for backend in ["cuda", "metal", "vulkan", "wgpu", "tch", "cube-cpu"] {
        let error = refused(backend);
        if !peft::device::backends().contains(&backend) {
            assert!(error.contains(&format!("build with `--features {backend}`")), "{error}");
        }
    }
}

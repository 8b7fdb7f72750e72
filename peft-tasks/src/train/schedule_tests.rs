//! Expected values: `get_scheduler(name, SGD(lr=5e-4), num_warmup_steps=3, num_training_steps=10,
//! scheduler_specific_kwargs=…)` of transformers 5.23, `get_last_lr()[0] / 5e-4` before each of 13 steps.

use super::*;

#[rustfmt::skip]
#[allow(clippy::approx_constant)] // 1/√2 comes up by chance
const RECORDED: [(&str, &str, [f64; 13]); 13] = [
    ("constant", r#"{}"#,
     [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0,
      1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
    ("constant_with_warmup", r#"{}"#,
     [0.0, 0.3333333333, 0.6666666667, 1.0, 1.0, 1.0, 1.0,
      1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
    ("linear", r#"{}"#,
     [0.0, 0.3333333333, 0.6666666667, 1.0, 0.8571428571, 0.7142857143, 0.5714285714,
      0.4285714286, 0.2857142857, 0.1428571429, 0.0, 0.0, 0.0]),
    ("cosine", r#"{}"#,
     [0.0, 0.3333333333, 0.6666666667, 1.0, 0.950484434, 0.8117449009, 0.611260467,
      0.388739533, 0.1882550991, 0.04951556605, 0.0, 0.04951556605, 0.1882550991]),
    ("cosine_with_restarts", r#"{}"#,
     [0.0, 0.3333333333, 0.6666666667, 1.0, 0.950484434, 0.8117449009, 0.611260467,
      0.388739533, 0.1882550991, 0.04951556605, 0.0, 0.0, 0.0]),
    ("polynomial", r#"{}"#,
     [0.0, 0.3333333333, 0.6666666667, 1.0, 0.8571714286, 0.7143428571, 0.5715142857,
      0.4286857143, 0.2858571429, 0.1430285714, 0.0002, 0.0002, 0.0002]),
    ("inverse_sqrt", r#"{}"#,
     [0.0, 0.3333333333, 0.6666666667, 1.0, 0.8660254038, 0.7745966692, 0.7071067812,
      0.6546536707, 0.6123724357, 0.5773502692, 0.5477225575, 0.5222329679, 0.5]),
    ("cosine", r#"{"num_cycles": 1.0}"#,
     [0.0, 0.3333333333, 0.6666666667, 1.0, 0.8117449009, 0.388739533, 0.04951556605,
      0.04951556605, 0.388739533, 0.8117449009, 1.0, 0.8117449009, 0.388739533]),
    ("cosine_with_restarts", r#"{"num_cycles": 2}"#,
     [0.0, 0.3333333333, 0.6666666667, 1.0, 0.8117449009, 0.388739533, 0.04951556605,
      0.950484434, 0.611260467, 0.1882550991, 0.0, 0.0, 0.0]),
    ("polynomial", r#"{"lr_end": 1e-05, "power": 2.0}"#,
     [0.0, 0.3333333333, 0.6666666667, 1.0, 0.74, 0.52, 0.34,
      0.2, 0.1, 0.04, 0.02, 0.02, 0.02]),
    ("inverse_sqrt", r#"{"timescale": 5}"#,
     [0.0, 0.3333333333, 0.6666666667, 1.0, 0.9128709292, 0.8451542547, 0.790569415,
      0.7453559925, 0.7071067812, 0.6741998625, 0.6454972244, 0.6201736729, 0.5976143047]),
    ("cosine_with_min_lr", r#"{"min_lr": 0.0001}"#,
     [0.0, 0.3333333333, 0.6666666667, 1.0, 0.9603875472, 0.8493959207, 0.6890083736,
      0.5109916264, 0.3506040793, 0.2396124528, 0.2, 0.2396124528, 0.3506040793]),
    ("cosine_with_min_lr", r#"{"min_lr_rate": 0.1, "num_cycles": 0.25}"#,
     [0.0, 0.3333333333, 0.6666666667, 1.0, 0.9887175605, 0.9554359906, 0.9018241671,
      0.8305704108, 0.7452476826, 0.6501344203, 0.55, 0.4498655797, 0.3547523174]),
];

fn config(json: &str) -> ScheduleConfig {
    serde_json::from_str(json).unwrap()
}

fn refusal(json: &str) -> String {
    Schedule::new(&config(json), 10, 5e-4).unwrap_err().to_string()
}

#[test]
fn every_shape_is_that_of_transformers() {
    for (name, kwargs, expected) in RECORDED {
        let json = format!(r#"{{"lr_scheduler_type": "{name}", "warmup_steps": 3, "lr_scheduler_kwargs": {kwargs}}}"#);
        let schedule = Schedule::new(&config(&json), 10, 5e-4).unwrap();
        for (step, expected) in expected.into_iter().enumerate() {
            let ours = schedule.factor(step);
            assert!((ours - expected).abs() < 1e-9, "{json}, step {step}: {ours} and not {expected}");
        }
        assert_eq!(schedule.rate(3), 5e-4);
    }
}

#[test]
fn warm_up_as_steps_or_share() {
    let warmup = |json: &str| Schedule::new(&config(json), 25, 1.0).unwrap().warmup;
    assert_eq!(warmup(r#"{"warmup_steps": 5, "warmup_ratio": 0.9}"#), 5);
    assert_eq!(warmup(r#"{"warmup_ratio": 0.1}"#), 3);
    assert_eq!(warmup(r#"{"warmup_steps": 0.1}"#), 3);
    assert_eq!(warmup("{}"), 0);
}

#[test]
fn short_runs_stay_finite() {
    for kind in ScheduleKind::ALL {
        let rate = (kind == ScheduleKind::CosineWithMinLr).then_some(0.1);
        for (total, warmup_steps) in [(0, 0.0), (1, 0.0), (1, 1.0), (3, 7.0)] {
            let kwargs = ScheduleArguments { min_lr_rate: rate, ..ScheduleArguments::default() };
            let config = ScheduleConfig {
                lr_scheduler_type: kind,
                warmup_steps,
                lr_scheduler_kwargs: kwargs,
                ..ScheduleConfig::default()
            };
            let schedule = Schedule::new(&config, total, 1e-3).unwrap();
            assert!((0..12).all(|it| (0.0..=1.0).contains(&schedule.factor(it))), "{kind:?} {total}");
        }
    }
}

#[test]
fn names_and_refusals() {
    for kind in ScheduleKind::ALL {
        assert_eq!(kind.name().parse::<ScheduleKind>().unwrap(), kind);
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
    }
    assert!("warm".parse::<ScheduleKind>().unwrap_err().to_string().contains("expected one of constant,"));
    let needs = refusal(r#"{"lr_scheduler_type": "cosine_with_min_lr"}"#);
    assert!(needs.contains("needs one of `min_lr` and `min_lr_rate`"), "{needs}");
    let unknown = refusal(r#"{"lr_scheduler_kwargs": {"num_cycles": 2}}"#);
    assert_eq!(unknown, "`lr_scheduler_kwargs` sets `num_cycles`, which linear does not know");
    assert!(refusal(r#"{"warmup_steps": -1}"#).starts_with("`warmup_steps` is -1"));
    let end = refusal(r#"{"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1}}"#);
    assert!(end.starts_with("`lr_end` is 1"), "{end}");
}

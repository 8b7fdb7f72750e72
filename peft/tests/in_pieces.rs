//! A base of which another process keeps a part: the numbers of a whole one, bit for bit, for every model and every method.

use peft::core::files::checkpoint::{BaseDtype, FloatType, Placement};
use peft::run::ForwardRequest;
use peft::tasks::parallel::group::{run_local, sharded_base};

use crate::half_precision::{assert_same, halved, load, outcome};
use crate::laws::{MODELS, rows};
use crate::support::{expected, fixtures, forward, processor, request};

/// As files have it, in pieces.
fn pieces(place: Placement) -> Placement {
    place.with_dtype(BaseDtype::Auto).with_shards(sharded_base().unwrap())
}

/// Logits, loss and gradients live, and logits merged: codes are among them, and models of every kind.
#[test]
fn recorded_cases_compute_the_same_bits() {
    alone!();
    let names = std::fs::read_dir(fixtures().join("cases")).unwrap();
    let mut names: Vec<String> = names.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let mut compared = 0;
    for name in names.iter().step_by(5) {
        let live = request(name);
        let merged = ForwardRequest { merge: true, ..live.clone() };
        let trained = ForwardRequest { grads: true, ..live.clone() };
        let file = fixtures().join("cases").join(name).join("expected.safetensors");
        let has_gradients = expected(&file).keys().any(|it| it.starts_with("grad."));
        for request in [live, merged].into_iter().chain(has_gradients.then_some(trained)) {
            let place = Placement::on(&processor()).with_dtype(BaseDtype::Auto);
            let wanted = forward(&request, &place);
            let found = run_local(2, |_| forward(&request, pieces(Placement::on(&processor()))));
            for found in found {
                match (found, &wanted) {
                    (Ok(found), Ok(wanted)) => assert_same(name, &found, wanted),
                    // Some cannot be merged.
                    (Err(_), Err(_)) => {}
                    (found, wanted) => panic!("{name}: {:?} but {:?}", found.err(), wanted.as_ref().err()),
                }
            }
            compared += usize::from(wanted.is_ok());
        }
    }
    assert!(compared > 200, "only {compared} outputs are compared");
}

/// The other process keeps its part, and takes part in nothing.
#[test]
fn every_method_starts_and_trains_with_the_same_bits() {
    alone!();
    for names in &MODELS {
        for float in [FloatType::F32, FloatType::BF16] {
            let folder = halved(names.model, float);
            for row in rows() {
                let wanted = outcome(load(folder.path(), &Placement::on(&processor())), (row.config)(names));
                let found = run_local(2, |group| {
                    let mut base = Some(load(folder.path(), &pieces(Placement::on(&processor()))));
                    let own = base.take_if(|_| group.rank() == 0);
                    let found = own.map(|it| outcome(it, (row.config)(names)));
                    group.all_gather(Vec::new()).unwrap();
                    found
                });
                let found = found.into_iter().flatten().next().unwrap();
                assert_same(&format!("{} on {}", row.name, names.model), &found, &wanted);
            }
        }
    }
}

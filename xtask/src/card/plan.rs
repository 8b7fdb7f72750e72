//! What is measured, and in which order: the time may end at any moment.

use super::options::Shapes;
use crate::bench::shapes::{SHAPES, Shape, TINY, Tuner, lora};

/// A line of the table.
#[derive(Debug, Clone)]
pub(crate) struct Work {
    pub(crate) shape: Shape,
    pub(crate) method: Tuner,
}

/// A column of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    /// Ours on a device, by its number.
    Ours(usize),
    Torch,
    TorchCompiled,
}

const R8: Tuner = lora("r 8", 8, false);
const R32_ALL: Tuner = lora("r 32, all linear", 32, true);
const R32_ALL_NF4: Tuner = lora("r 32, all linear, NF4", 32, true).in_nf4();

/// How many lines come first, and for how many of them what takes longest is tried then, too.
const FIRST: usize = 7;
const FIRST_COMPILED: usize = 3;

/// All lines, the most important first.
pub(crate) fn works(shapes: Shapes) -> Vec<Work> {
    let work = |name: &str, batch: usize, seq: usize, method: &Tuner, bf16: bool| Work {
        shape: Shape { batch, seq, ..named(name) },
        method: if bf16 { method.in_bf16() } else { *method },
    };
    // A small one shows at once that something comes out; the goals are those of the largest.
    let mut works = match shapes {
        Shapes::Full => vec![
            work("gpt2-124m", 4, 512, &R8, false),
            work("gpt2-124m", 4, 512, &R8, true),
            work("llama-3.2-3b", 4, 512, &R8, true),
            work("llama-3.2-3b", 4, 512, &R8, false),
            work("llama-3.2-3b", 8, 1024, &R32_ALL, true),
            work("llama-1.1b", 4, 512, &R8, true),
            work("llama-3.2-3b", 4, 512, &R32_ALL_NF4, true),
        ],
        Shapes::Tiny => vec![work("llama-tiny", 2, 16, &R32_ALL_NF4, false)],
    };
    let (names, batches) = match shapes {
        Shapes::Full => (&["llama-1.1b", "smollm2-135m", "gpt2-124m", "llama-3.2-3b"][..], [[4, 512], [8, 1024]]),
        Shapes::Tiny => (&["gpt2-tiny", "llama-tiny"][..], [[2, 16], [4, 32]]),
    };
    for [batch, seq] in batches {
        for method in [&R8, &R32_ALL] {
            for bf16 in [true, false] {
                works.extend(names.iter().map(|name| work(name, batch, seq, method, bf16)));
            }
        }
    }
    let mut seen = Vec::new();
    works.retain(|it| {
        let key = (it.shape.name, it.shape.batch, it.method.name, it.method.bf16);
        let is_new = !seen.contains(&key);
        seen.push(key);
        is_new
    });
    works
}

/// The same shapes in a size that takes no time.
pub(crate) fn smoke_shapes() -> [Shape; 2] {
    ["gpt2-tiny", "llama-tiny"].map(named)
}

pub(crate) fn smoke_method(bf16: bool) -> Tuner {
    if bf16 { R8.in_bf16() } else { R8 }
}

/// The programs of a line, in the order of their columns.
pub(crate) fn programs(devices: usize, with_torch: bool) -> Vec<Program> {
    let torch = [Program::Torch, Program::TorchCompiled].into_iter().filter(|_| with_torch);
    (0..devices).map(Program::Ours).chain(torch).collect()
}

/// Lines and programs in the order in which they are measured, of lines in the order of their importance: for the first of
/// them the pairs that everybody asks for, then what takes longer, then all the others.
pub(crate) fn order(lines: &[usize], programs: &[Program]) -> Vec<(usize, Program)> {
    let is_main = |it: &Program| matches!(it, Program::Ours(0) | Program::Torch);
    // Compiling takes longest.
    let is_last = |it: &Program| *it == Program::TorchCompiled;
    let main = || programs.iter().copied().filter(is_main);
    let others = || programs.iter().copied().filter(|it| !is_main(it) && !is_last(it));
    let last = || programs.iter().copied().filter(is_last);
    let (first, rest) = lines.split_at(lines.len().min(FIRST));
    let (soon, late) = lines.split_at(lines.len().min(FIRST_COMPILED));
    let mut order: Vec<(usize, Program)> = Vec::new();
    order.extend(first.iter().flat_map(|line| main().map(move |it| (*line, it))));
    order.extend(first.iter().flat_map(|line| others().map(move |it| (*line, it))));
    order.extend(soon.iter().flat_map(|line| last().map(move |it| (*line, it))));
    order.extend(rest.iter().flat_map(|line| main().chain(others()).map(move |it| (*line, it))));
    order.extend(late.iter().flat_map(|line| last().map(move |it| (*line, it))));
    order
}

fn named(name: &str) -> Shape {
    let found = SHAPES.iter().chain(&TINY).find(|it| it.name == name);
    *found.unwrap_or_else(|| unreachable!("the bench has a shape {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_there_once() {
        // Four shapes, two batches, two methods, two types, and one on a base in few bits.
        assert_eq!(works(Shapes::Full).len(), 33);
        assert_eq!(works(Shapes::Tiny).len(), 17);
        let big = works(Shapes::Full).into_iter().filter(|it| it.shape.name == "llama-3.2-3b").count();
        assert_eq!(big, 9);
    }

    #[test]
    fn every_program_does_every_line_once_and_the_important_ones_first() {
        let programs = programs(2, true);
        let order = order(&(0..32).collect::<Vec<_>>(), &programs);
        assert_eq!(order.len(), 32 * 4);
        for line in 0..32 {
            assert!(programs.iter().all(|it| order.iter().filter(|one| **one == (line, *it)).count() == 1), "{line}");
        }
        assert_eq!(order[..3], [(0, Program::Ours(0)), (0, Program::Torch), (1, Program::Ours(0))]);
        let at = |what| order.iter().position(|it| *it == what);
        assert!(at((5, Program::Torch)) < at((0, Program::TorchCompiled)));
        assert!(at((5, Program::Ours(1))) < at((0, Program::TorchCompiled)));
        assert!(at((2, Program::TorchCompiled)) < at((7, Program::Ours(0))));
        assert!(at((31, Program::Ours(1))) < at((3, Program::TorchCompiled)));
    }

    #[test]
    fn without_torch_there_is_nothing_of_torch() {
        assert_eq!(super::programs(1, false), [Program::Ours(0)]);
        assert_eq!(order(&[1, 0], &[Program::Ours(0)]), [(1, Program::Ours(0)), (0, Program::Ours(0))]);
    }
}

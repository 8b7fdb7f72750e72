//! Attention and its masks.

use burn::tensor::{Bool, Int, Tensor, TensorData};

use super::{agree, assert_close, check, device, numbers, values};
use crate::ops::{self, AttentionMask, Visibility};

#[test]
fn the_mask_of_some_queries_is_part_of_the_mask() {
    let [q, k, v] = [1, 2, 3].map(|salt| numbers([2, 2, 6, 4], salt));
    let bias = numbers([1, 2, 1, 6], 4);
    let full = AttentionMask::new(Visibility::dense(mask(2, 6, 6, 1)), true).with_bias(bias);
    let all = ops::attention(q.clone(), k.clone(), v.clone(), Some(&full), 0.5, 0.0);
    let part = ops::attention(q.narrow(2, 2, 3), k, v, Some(&full.of_queries(2..5)), 0.5, 0.0);
    assert_close("queries", &values(part), &values(all.narrow(2, 2, 3)));
}

/// Hides what comes after the query, some keys in the middle, and everything from the queries before `blind`.
fn mask(batch: usize, queries: usize, keys: usize, blind: usize) -> Tensor<4, Bool> {
    let hidden = (0..batch * queries * keys).map(|at| {
        let (row, query, key) = (at / (queries * keys), at / keys % queries, at % keys);
        key + queries > query + keys || query < blind || (key == 2 && row == 1 && query > 3)
    });
    Tensor::from_data(TensorData::new(hidden.collect::<Vec<_>>(), [batch, 1, queries, keys]), &device())
}

#[test]
fn attention_is_its_composition() {
    // batch, heads, key heads, queries, keys, d_head
    for (batch, heads, kv_heads, queries, keys, d_head) in [
        (1, 1, 1, 1, 1, 1),
        (2, 4, 2, 5, 7, 3),
        (2, 3, 3, 70, 70, 8),
        (1, 6, 2, 130, 150, 5),
        (3, 2, 1, 1, 9, 16),
        (2, 4, 2, 66, 77, 34),
    ] {
        let inputs = || {
            [
                numbers([batch, heads, queries, d_head], 1),
                numbers([batch, kv_heads, keys, d_head], 2),
                numbers([batch, kv_heads, keys, d_head], 3),
            ]
        };
        let causal = |blind| Visibility::dense(mask(batch, queries, keys, blind));
        let masks = [
            None,
            Some(AttentionMask::new(causal(0), false)),
            Some(AttentionMask::new(causal(queries.min(3)), true)),
            Some(AttentionMask::new(causal(queries.min(3)), false)),
            Some(AttentionMask::new(Visibility::dense(mask(1, queries, keys, 0)), true)),
            Some(AttentionMask::added(causal(queries.min(3)))),
            Some(AttentionMask::added_twice(Visibility::dense(mask(1, queries, keys, 0)), causal(queries.min(3)))),
        ];
        for (at, mask) in masks.iter().enumerate() {
            let name = format!("attention with mask {at} of {keys} keys");
            let fused = |[q, k, v]: [Tensor<4>; 3]| ops::attention(q, k, v, mask.as_ref(), 0.6, 0.0);
            let composed = |[q, k, v]: [Tensor<4>; 3]| ops::attention_plain(q, k, v, mask.as_ref(), 0.6, None, 0.0);
            // What is added to a score of a blind query drowns it, and its gradient goes through all the same.
            if at < 5 {
                check(&name, inputs(), fused, composed);
            } else {
                agree(&name, &inputs(), fused, composed);
            }
        }
        for shape in [[1, heads, queries, keys], [batch, heads, 1, keys], [batch, 1, queries, keys], [1, 1, 1, keys]] {
            let [q, k, v] = inputs();
            let masks = [AttentionMask::new(causal(1), true), AttentionMask::added(causal(1))];
            for (at, mask) in masks.into_iter().enumerate() {
                let biased = |bias| mask.clone().with_bias(bias);
                for cap in [None, Some(1.5)] {
                    let inputs = [q.clone(), k.clone(), v.clone(), numbers(shape, 4)];
                    let fused = |[q, k, v, bias]: [Tensor<4>; 4]| match cap {
                        // Bent first, biased then.
                        Some(cap) => ops::attention_capped(q, k, v, Some(&biased(bias)), 0.6, cap, 0.0),
                        None => ops::attention(q, k, v, Some(&biased(bias)), 0.6, 0.0),
                    };
                    let composed = |[q, k, v, bias]: [Tensor<4>; 4]| {
                        ops::attention_plain(q, k, v, Some(&biased(bias)), 0.6, cap, 0.0)
                    };
                    let name = format!("attention with a bias and a cap {cap:?}");
                    if at == 0 {
                        check(&name, inputs, fused, composed);
                    } else {
                        agree(&name, &inputs, fused, composed);
                    }
                }
            }
        }
        check(
            "attention with a cap",
            inputs(),
            |[q, k, v]| ops::attention_capped(q, k, v, None, 0.6, 2.5, 0.0),
            |[q, k, v]| ops::attention_plain(q, k, v, None, 0.6, Some(2.5), 0.0),
        );
    }
}

fn whole<const D: usize>(shape: [usize; D], number: impl Fn(usize) -> i64) -> Tensor<D, Int> {
    let numbers: Vec<i64> = (0..shape.iter().product()).map(number).collect();
    Tensor::from_data(TensorData::new(numbers, shape), &device())
}

/// A description in vectors hides what a table says that is made from the rule itself, one query and key at a time.
#[test]
fn a_mask_in_vectors_is_the_table_of_its_rule() {
    const BATCH: usize = 2;
    for (past, seq) in [(0, 1), (0, 9), (4, 1), (5, 6), (0, 80), (3, 130)] {
        let total = past + seq;
        let around = |window, ahead| Visibility::around(past..total, window, ahead, &device());
        // Padding on the left of one row, on the right and in the middle of the other.
        let kept = |row: usize, key: usize| match row {
            0 => key >= total / 3,
            _ => key < total - total / 4 && key != 2,
        };
        let padding = |at: usize| if kept(at / total, at % total) { Visibility::EVERYONE } else { Visibility::NOBODY };
        let padded = |sight: Visibility| sight.within(whole([1, 1], |_| 0), whole([BATCH, total], padding));
        // Documents of 7 and of 5 tokens behind a past that all see, and padding in the end.
        let document = |row: usize, key: usize| match key {
            key if key < past => Visibility::EVERYONE,
            key if row == 1 && key + 2 >= total => 0,
            key => 1 + ((key - past) / [7, 5][row]) as i64,
        };
        let apart = |sight: Visibility| {
            let queries = whole([BATCH, seq], |at| document(at / seq, past + at % seq));
            sight.within(queries, whole([BATCH, total], |at| document(at / total, at % total)))
        };
        let same = |row: usize, query: usize, key: usize| {
            let key = document(row, key);
            key == Visibility::EVERYONE || key == document(row, query)
        };
        let before = |query: usize, key: usize| key <= query;
        let prefix = |row: usize| total / (row + 2);
        let behind = Visibility::between(
            Tensor::zeros([1, 1], &device()),
            whole([BATCH, seq], |at| (past + at % seq + 1).max(prefix(at / seq)) as i64),
        );
        let free = |query: usize| query % 3 == 1;
        let some_free = Visibility::default().within(
            whole([1, seq], |at| if free(past + at) { Visibility::EVERYTHING } else { 5 }),
            whole([BATCH, total], padding),
        );
        type Rule<'a> = Box<dyn Fn(usize, usize, usize) -> bool + 'a>;
        let rules: Vec<(&str, Visibility, Rule)> = vec![
            ("causal", around(None, 0), Box::new(|_, query, key| before(query, key))),
            ("window", around(Some(4), 0), Box::new(|_, query, key| before(query, key) && key + 4 > query)),
            ("near", around(Some(4), 3), Box::new(|_, query, key| query.abs_diff(key) <= 3)),
            ("padded", padded(Visibility::default()), Box::new(|row, _, key| kept(row, key))),
            (
                "causal padded",
                padded(around(None, 0)),
                Box::new(|row, query, key| before(query, key) && kept(row, key)),
            ),
            (
                "window padded",
                padded(around(Some(3), 0)),
                Box::new(|row, query, key| before(query, key) && key + 3 > query && kept(row, key)),
            ),
            ("documents", apart(Visibility::default()), Box::new(same)),
            ("causal documents", apart(around(None, 0)), Box::new(|row, q, k| before(q, k) && same(row, q, k))),
            ("prefix", behind, Box::new(|row, query, key| before(query, key) || key < prefix(row))),
            ("free", some_free, Box::new(|row, query, key| free(query) || kept(row, key))),
            ("nothing", around(Some(0), 0), Box::new(|_, _, _| false)),
        ];
        let inputs = [seq, total, total].map(|length| numbers([BATCH, 2, length, 5], length));
        for (name, sight, rule) in &rules {
            let table = (0..BATCH * seq * total).map(|at| {
                let (row, query, key) = (at / (seq * total), at / total % seq, at % total);
                !rule(row, past + query, key)
            });
            let table = TensorData::new(table.collect::<Vec<bool>>(), [BATCH, 1, seq, total]);
            let table = Visibility::dense(Tensor::from_data(table, &device()));
            let window = || around(Some(5), 0);
            let masks: [[AttentionMask; 2]; 4] = [
                [sight, &table].map(|it| AttentionMask::new(it.clone(), true)),
                [sight, &table].map(|it| AttentionMask::new(it.clone(), true).never_blind()),
                [sight, &table].map(|it| AttentionMask::added(it.clone())),
                [sight, &table].map(|it| AttentionMask::added_twice(window(), it.clone())),
            ];
            for (how, [described, dense]) in masks.iter().enumerate() {
                // Hidden twice everywhere is not a number.
                if how == 3 && *name == "nothing" && seq + past <= 5 {
                    continue;
                }
                let name = format!("{name} {how} of {past} + {seq}");
                let plain = |mask: &AttentionMask| {
                    let [q, k, v] = inputs.clone();
                    values(ops::attention_plain(q, k, v, Some(mask), 0.6, None, 0.0))
                };
                assert_close(&format!("composed {name}"), &plain(described), &plain(dense));
                agree(
                    &name,
                    &inputs,
                    |[q, k, v]| ops::attention(q, k, v, Some(described), 0.6, 0.0),
                    |[q, k, v]| ops::attention_plain(q, k, v, Some(dense), 0.6, None, 0.0),
                );
                let (from, count) = (seq / 3, seq.div_ceil(2));
                let part = || described.of_queries(from..from + count);
                let [q, k, v] = inputs.clone();
                let all = ops::attention(q.clone(), k.clone(), v.clone(), Some(dense), 0.6, 0.0);
                let some = ops::attention(q.narrow(2, from, count), k, v, Some(&part()), 0.6, 0.0);
                assert_close(&format!("some queries of {name}"), &values(some), &values(all.narrow(2, from, count)));
            }
        }
    }
}

#[test]
fn attention_reads_views_and_drops_what_it_remembers() {
    let fused: Tensor<4> = numbers([2, 6, 9, 4], 8);
    let parts = |x: Tensor<4>| {
        let part = |at: usize| x.clone().narrow(2, at * 3, 3).swap_dims(1, 2);
        [part(0), part(1), part(2)]
    };
    for fused in [fused.clone(), numbers([2, 40, 9, 33], 8)] {
        check(
            "attention of views",
            [fused],
            |[x]| {
                let [q, k, v] = parts(x);
                ops::attention(q, k, v, None, 0.5, 0.0)
            },
            |[x]| {
                let [q, k, v] = parts(x);
                ops::attention_plain(q, k, v, None, 0.5, None, 0.0)
            },
        );
    }
    // Values of one: the output is the sum of the weights that were kept, and a value's gradient what it was weighted by.
    let [q, k, _] = parts(fused);
    let ones = Tensor::<4>::ones([2, 3, 6, 4], &device()).autodiff().require_grad();
    let output = ops::attention(q, k, ones.clone(), None, 0.5, 0.5);
    let grads = output.clone().sum().backward();
    let output = values(output.inner());
    assert!(output.iter().any(|it| (it - 1.0).abs() > 0.1));
    let given: f32 = output.iter().sum();
    let taken: f32 = values(ones.grad(&grads).expect("a gradient")).iter().sum();
    assert!((given - taken).abs() < 1e-3, "{given} {taken}");
}

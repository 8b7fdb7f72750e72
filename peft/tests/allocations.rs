//! What a training step and a plan allocate: a guard that counts bytes, not seconds, and so is the same on every machine,
//! however busy.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use burn::module::Module;
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Int, Tensor};
use peft::core::files::checkpoint::{BaseDtype, FloatType, Placement, model_tensors, write_tensors};
use peft::core::forward::gradient_checkpointing;
use peft::core::nn::Dropout;
use peft::core::ops;
use peft::core::quant::{FourBit, QuantConfig, QuantFormat};
use peft::core::{Adaptable, DEFAULT_ADAPTER, PeftConfig, PeftModel};
use peft::device::device;
use peft::ia3::Ia3Config;
use peft::lora::LoraConfig;
use peft::models::ModelInput;
use peft::models::auto::{AutoCausalLm, load_causal_lm};
use peft::models::common::config::RawConfig;
use peft::models::common::mask;
use peft::models::text::decoder::gpt2::{Gpt2Config, Gpt2LmHeadModel};
use peft::tasks::data::Sample;
use peft::tasks::parallel::group::{run_local, sharded_base};
use peft::tasks::tasks::language_modelling::LanguageModelling;
use peft::tasks::tasks::task::Task;

use crate::support::{fixtures, registry};

/// The system's allocator, which also counts for every thread what that thread asks for.
struct Counting;

thread_local! {
    static BYTES: Cell<usize> = const { Cell::new(0) };
    static CALLS: Cell<usize> = const { Cell::new(0) };
    /// Bytes that this thread asked for less those that it gave back.
    static HELD: Cell<isize> = const { Cell::new(0) };
    /// The most that it held at once.
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: usize) {
    // A thread that is ending has no counters any more.
    let _ = BYTES.try_with(|it| it.set(it.get() + bytes));
    let _ = CALLS.try_with(|it| it.set(it.get() + 1));
    hold(bytes as isize);
}

fn hold(bytes: isize) {
    let _ = HELD.try_with(|it| {
        it.set(it.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(it.get())));
    });
}

// SAFETY: every call goes to the system's allocator as it came, and counting does not allocate.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size.saturating_sub(layout.size()));
        hold(-(layout.size().saturating_sub(size) as isize));
        unsafe { System.realloc(old, layout, size) }
    }
    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        hold(-(layout.size() as isize));
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const BATCH: usize = 2;
const SEQ: usize = 32;
const D_MODEL: usize = 64;

/// GPT-2 with LoRA on the attention, and a batch for it.
fn adapted(layers: usize, batch: usize, seq: usize) -> (PeftModel<Gpt2LmHeadModel>, LanguageModelling) {
    let device = device("flex").unwrap();
    let json = format!(
        r#"{{"model_type": "gpt2", "vocab_size": 97, "n_positions": {seq}, "n_embd": {D_MODEL}, "n_layer": {layers},
            "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}}"#
    );
    let config =
        <Gpt2Config as peft::models::auto::ModelConfig>::from_raw(&RawConfig::parse_text(&json).unwrap()).unwrap();
    let model = Gpt2LmHeadModel::new(&config, &device);
    let mut peft = PeftModel::new(model);
    peft.add_adapter_as(DEFAULT_ADAPTER, LoraConfig::new(8, 16.0), 0).unwrap();
    let rows = (0..batch).map(|row| Sample::language((0..seq).map(|at| ((row * seq + at) * 31 % 97) as u32).collect()));
    (peft, LanguageModelling::padded(rows.collect(), 0).unwrap())
}

/// Bytes and calls of one forward and backward.
fn step(layers: usize) -> (usize, usize) {
    let (device, (peft, task)) = (device("flex").unwrap(), adapted(layers, BATCH, SEQ));
    let run = || {
        let loss = task.loss_sum(peft.model(), &[0, 1], &device).unwrap();
        drop(loss.backward());
    };
    // Weights are lazy, and threads start when they are first needed.
    run();
    let before = (BYTES.get(), CALLS.get());
    run();
    (BYTES.get() - before.0, CALLS.get() - before.1)
}

/// The most that a forward and backward hold, as a multiple of one activation, `[batch, seq, d_model]`.
fn peak(layers: usize, checkpointed: bool) -> f64 {
    // So many tokens that what Burn notes about operations does not count.
    let (batch, seq) = (4, 128);
    let (device, (peft, task)) = (device("flex").unwrap(), adapted(layers, batch, seq));
    let rows: Vec<usize> = (0..batch).collect();
    let run = || {
        let loss = |model: &Gpt2LmHeadModel| task.loss_sum(model, &rows, &device).unwrap();
        let loss = match checkpointed {
            true => gradient_checkpointing::scope(peft.model(), loss).unwrap(),
            false => loss(peft.model()),
        };
        drop(loss.backward());
    };
    run();
    PEAK.set(HELD.get());
    let before = HELD.get();
    run();
    (PEAK.get() - before) as f64 / (batch * seq * D_MODEL * size_of::<f32>()) as f64
}

/// Of a layer that is computed again remains its input; everything else is there for one layer at a time.
#[test]
fn layers_that_are_computed_again_hold_their_input_only() {
    alone!();
    let [kept, again] = [false, true].map(|checkpointed| [2, 10].map(|layers| peak(layers, checkpointed)));
    let per_layer = |[shallow, deep]: [f64; 2]| (deep - shallow) / 8.0;
    assert!(per_layer(again) < 2.0, "a layer holds {:.1} activations beside {:.1}", per_layer(again), per_layer(kept));
    assert!(again[1] < kept[1] / 2.0, "ten layers hold {:.1} activations beside {:.1}", again[1], kept[1]);
}

/// Ten models with an adapter each, over one base, are trained a step: none of them holds a second copy of the base.
#[test]
fn ten_adapted_models_take_the_memory_of_one_base() {
    alone!();
    let device = device("flex").unwrap();
    let json = r#"{"model_type": "gpt2", "vocab_size": 4001, "n_positions": 8, "n_embd": 128, "n_layer": 2,
        "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}"#;
    let config =
        <Gpt2Config as peft::models::auto::ModelConfig>::from_raw(&RawConfig::parse_text(json).unwrap()).unwrap();
    let base = Gpt2LmHeadModel::new(&config, &device);
    let task = LanguageModelling::padded(vec![Sample::language(vec![5, 17])], 0).unwrap();
    // Weights are lazy.
    task.loss_sum(&base, &[0], &device).unwrap();
    let size = base.num_params() * size_of::<f32>();

    let adapted = |seed: u64| {
        let mut peft = PeftModel::with_spec(base.clone(), base.spec());
        peft.add_adapter_as(DEFAULT_ADAPTER, LoraConfig::new(2, 4.0), seed).unwrap();
        let loss = task.loss_sum(peft.model(), &[0], &device).unwrap();
        let gradients = GradientsParams::from_grads(loss.backward(), peft.model());
        let trained = AdamWConfig::new().init().step(1e-2, peft.model().clone(), gradients);
        peft.set_model(trained);
        peft
    };
    drop(adapted(0));
    let before = HELD.get();
    let models: Vec<_> = (0..10).map(adapted).collect();
    let held = HELD.get() - before;
    assert!(held < size as isize / 4, "ten models hold {held} bytes beside a base of {size}");
    assert_eq!(models.len(), 10);
}

/// A base of which the file has halves: what the process holds of it, and what a step holds beside it.
#[test]
fn halves_are_read_where_they_lie_and_never_kept_in_single_precision() {
    let device = device("flex").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let json = r#"{"model_type": "llama", "hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 4,
        "num_hidden_layers": 3, "tie_word_embeddings": true, "vocab_size": 2003}"#;
    std::fs::write(folder.path().join("config.json"), json).unwrap();
    let model = AutoCausalLm::from_config(&RawConfig::read(folder.path()).unwrap(), &device).unwrap();
    let size = (model.num_params() * size_of::<f32>()) as f64;
    let write = |float| write_tensors(folder.path().join("model.safetensors"), model_tensors(&model), float).unwrap();
    let task = LanguageModelling::padded(vec![Sample::language(vec![5, 17, 3])], 0).unwrap();
    // Bytes of the base, and of the state that a step keeps for its backward pass.
    let held = |dtype: BaseDtype, dora: bool| {
        let before = HELD.get();
        let (model, _) = load_causal_lm(folder.path(), Placement::on(&device).with_dtype(dtype)).unwrap();
        let base = HELD.get() - before;
        let mut peft = PeftModel::with_spec(model.clone(), model.spec());
        let lora = LoraConfig { use_dora: dora, ..LoraConfig::new(2, 4.0).all_linear() };
        peft.add_adapter_as(DEFAULT_ADAPTER, lora, 0).unwrap();
        drop(task.loss_sum(peft.model(), &[0], &device).unwrap().backward());
        let before = HELD.get();
        let loss = task.loss_sum(peft.model(), &[0], &device).unwrap();
        let state = HELD.get() - before;
        drop(loss);
        (base as f64 / size, state as f64 / size)
    };
    write(FloatType::F32);
    let (rounded, _) = held(BaseDtype::BFloat16, false);
    assert!((0.45..0.55).contains(&rounded), "rounded weights take {rounded} of single precision");
    write(FloatType::BF16);
    for dora in [false, true] {
        let ((all, wanted), (mapped, state)) = (held(BaseDtype::Float32, dora), held(BaseDtype::Auto, dora));
        assert!((0.98..1.1).contains(&all), "{all} are held of a base in single precision");
        assert!(mapped < 0.05, "{mapped} of a base is held that lies in its file");
        let kept = (state, wanted);
        assert!(state < wanted + 0.02, "a step keeps {kept:?} over halves and over single precision, DoRA: {dora}");
    }
}

/// Measured with this very test; lower them when a step gets leaner.
const ACTIVATIONS_PER_LAYER: f64 = 185.0;
const CALLS_PER_LAYER: f64 = 2150.0;

/// The difference of two depths leaves embeddings and head out: what remains is what one more layer costs.
#[test]
fn a_layer_allocates_no_more_than_it_did() {
    alone!();
    let (shallow, deep) = (step(2), step(6));
    let activation = (BATCH * SEQ * D_MODEL * size_of::<f32>()) as f64;
    let activations = (deep.0 - shallow.0) as f64 / 4.0 / activation;
    let calls = (deep.1 - shallow.1) as f64 / 4.0;
    assert!(
        activations <= ACTIVATIONS_PER_LAYER && calls <= CALLS_PER_LAYER,
        "a layer allocates {activations:.1} times its activation in {calls:.1} calls, \
         not at most {ACTIVATIONS_PER_LAYER} in {CALLS_PER_LAYER}"
    );
}

/// The most that attention of `seq` tokens holds, masks and backward pass included: on a thread of its own, which does the
/// work of all.
fn peak_of_attention(seq: usize, capped: bool) -> isize {
    let run = || {
        let device = device("flex").unwrap();
        let [q, k, v] = [(); 3].map(|()| Tensor::<4>::ones([1, 2, seq, 16], &device).cumsum(3) / 16.0);
        let before = HELD.get();
        PEAK.set(before);
        let place = Tensor::<1, Int>::arange(0..seq as i64, &device).reshape([1, seq]);
        // Two thirds of the text, a shorter one, and padding.
        let segments = place.clone().greater_equal_elem(seq as i64 * 2 / 3).int() + 1;
        let kept = place.lower_elem(seq as i64 - 100).int();
        let input = ModelInput {
            segment_ids: Some(segments * kept.clone()),
            ..ModelInput::ids(Tensor::zeros([1, seq], &device)).with_mask(kept)
        };
        let mask = mask::causal(&input, 0, Some(seq / 2));
        let [q, k, v] = [q, k, v].map(|it| Tensor::from_inner(it).require_grad());
        let off = Dropout::new(0.0);
        let output = match capped {
            true => ops::attention_capped(q, k, v, mask.as_ref(), 0.25, 2.0, &off),
            false => ops::attention(q, k, v, mask.as_ref(), 0.25, &off),
        };
        drop(output.sum().backward());
        PEAK.get() - before
    };
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(run)
}

/// No table of queries and keys is made: one of 8192 tokens would take 67 MB as flags, and 268 MB as scores of a head.
#[test]
fn memory_of_attention_grows_as_the_text() {
    for capped in [false, true] {
        let [half, whole] = [4096, 8192].map(|seq| peak_of_attention(seq, capped));
        assert!((whole as f64) < 2.3 * half as f64, "{half} bytes, {whole} for twice the length");

        assert!(whole < 16 << 20, "{whole} bytes");
    }
}

/// LLaMA 7B, of which 27 GB are weights: planning, and inspecting adapters against it, builds none of them.
#[test]
fn a_model_of_7_billion_parameters_is_planned_and_inspected_in_a_few_megabytes() {
    let base = tempfile::tempdir().unwrap();
    let json = r#"{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
        "num_hidden_layers": 32, "tie_word_embeddings": false, "vocab_size": 32000}"#;
    std::fs::write(base.path().join("config.json"), json).unwrap();
    let device = device("flex").unwrap();
    let before = BYTES.get();
    let model = AutoCausalLm::from_config(&RawConfig::read(base.path()).unwrap(), &device).unwrap();
    let spec = model.spec();
    assert_eq!(spec.parameters(), 6_738_415_616);
    assert_eq!(LoraConfig::new(8, 16.0).plan(&spec).unwrap().trainable(), 4_194_304);
    let planned = BYTES.get() - before;
    assert!(planned < 16 << 20, "planning took {planned} bytes");

    let task = Some("CAUSAL_LM".to_owned());
    let ia3 = Ia3Config { task_type: task.clone(), ..Ia3Config::default() };
    let lora = LoraConfig { task_type: task, ..LoraConfig::new(1, 2.0) };
    let tuners: [(Box<dyn PeftConfig>, usize); 2] = [(Box::new(ia3), 614_400), (Box::new(lora), 524_288)];
    for (tuner, parameters) in tuners {
        let mut peft = PeftModel::with_spec(model.clone(), spec.clone());
        peft.add_adapter_as(DEFAULT_ADAPTER, tuner, 0).unwrap();
        let folder = tempfile::tempdir().unwrap();
        peft.save_adapter(folder.path(), DEFAULT_ADAPTER).unwrap();
        let before = BYTES.get();
        let found = peft::folder::inspect::inspect(folder.path(), Some(base.path()), registry()).unwrap();
        let taken = BYTES.get() - before;
        assert_eq!((found.parameters, found.fit.as_ref().and_then(|it| it.fits)), (parameters, Some(true)), "{found}");
        assert!(taken < 64 << 20, "inspecting took {taken} bytes");
    }
}

/// A base of GPTQ holds its codes, after loading and after a step: not the numbers that they mean, which take 147 kB.
#[test]
fn a_base_in_groups_stays_packed() {
    alone!();
    let device = device("flex").unwrap();
    let load = || load_causal_lm(fixtures().join("models/llama-gptq"), &device).unwrap().0;
    // What is made once for all models.
    drop(load());
    let before = HELD.get();
    let mut peft = PeftModel::new(load());
    let tables = 2 * 101 * 64 * size_of::<f32>() as isize;
    let held = HELD.get() - before - tables;
    assert!(held < 80_000, "{held} bytes for 36864 numbers of 4 bits");
    peft.add_adapter(LoraConfig::new(1, 1.0).all_linear()).unwrap();
    let rows = (0..2).map(|row| Sample::language((0..8).map(|at| row * 8 + at).collect()));
    let task = LanguageModelling::padded(rows.collect(), 0).unwrap();
    let step = || drop(task.loss_sum(peft.model(), &[0, 1], &device).unwrap().backward());
    step();
    let before = HELD.get();
    step();
    let kept = HELD.get() - before;
    assert!(kept < 20_000, "a step leaves {kept} bytes behind");
}

/// Of a base in pieces a process holds its part. A product makes one matrix whole, and neither the step nor what it keeps for
/// its backward pass holds any.
#[test]
fn a_base_in_pieces_takes_its_share() {
    alone!();
    let folder = tempfile::tempdir().unwrap();
    let json = r#"{"model_type": "llama", "hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 4,
        "num_hidden_layers": 6, "tie_word_embeddings": true, "vocab_size": 1003}"#;
    std::fs::write(folder.path().join("config.json"), json).unwrap();
    let model = AutoCausalLm::from_config(&RawConfig::read(folder.path()).unwrap(), &device("flex").unwrap()).unwrap();
    let size = (model.num_params() * size_of::<f32>()) as f64;
    let largest = (1003 * 96 * size_of::<f32>()) as f64 / size;
    write_tensors(folder.path().join("model.safetensors"), model_tensors(&model), FloatType::F32).unwrap();
    let task = || LanguageModelling::padded(vec![Sample::language(vec![5, 17, 3])], 0).unwrap();
    // Shares of a whole base in single precision: held after loading, at most while it was loaded, kept for the backward pass,
    // at most in a step, and left behind by it.
    let held = |sharded: bool, format: Option<QuantFormat>| {
        let device = device("flex").unwrap();
        let place = Placement::on(&device).with_quantization(format.map(QuantConfig::new));
        let place = place.with_shards(if sharded { sharded_base().unwrap() } else { None });
        let before = HELD.get();
        PEAK.set(before);
        let (model, _) = load_causal_lm(folder.path(), place).unwrap();
        let base = [HELD.get() - before, PEAK.get() - before];
        let mut peft = PeftModel::with_spec(model.clone(), model.spec());
        peft.add_adapter_as(DEFAULT_ADAPTER, LoraConfig::new(2, 4.0).all_linear(), 0).unwrap();
        let task = task();
        let before = HELD.get();
        PEAK.set(before);
        // The first step: what would be read ahead is not known yet, so this thread asks for all that it holds.
        let loss = task.loss_sum(peft.model(), &[0], &device).unwrap();
        let state = HELD.get() - before;
        drop(loss.backward());
        let step = [state, PEAK.get() - before, HELD.get() - before];
        [base[0], base[1], step[0], step[1], step[2]].map(|it| it as f64 / size)
    };
    for (format, bits) in [(None, 32.0), (Some(QuantFormat::FourBit(FourBit::Nf4)), 4.5)] {
        let whole = run_local(2, |_| held(false, format)).remove(0);
        for world_size in [2, 3] {
            for [base, loading, state, peak, left] in run_local(world_size, |_| held(true, format)) {
                // The table stays in single precision.
                let split = largest + (1.0 - largest) * bits / 32.0;
                let (saved, wanted) = ((whole[0] - base) / split, 1.0 - 1.0 / world_size as f64);
                let what =
                    format!("{format:?} in {world_size}: {base} {loading} {state} {peak} {left}, whole {whole:?}");
                assert!(
                    (saved - wanted).abs() < 0.05,
                    "{saved} of the matrices are left to others, not {wanted}; {what}"
                );
                assert!(format.is_some() || loading - base < whole[1] - whole[0] + 0.02, "{what}");
                assert!(state < whole[2] + 0.02, "{what}");
                assert!(peak < whole[3] + largest + 0.05, "{what}");
                assert!(left < whole[4] + 0.02, "{what}");
            }
        }
    }
}

//! AdamW whose moments take 8 bits a number.
//!
//! A moment is kept as the place of the nearest of 256 values, in blocks that share their largest number. A step widens the moments,
//! moves them and the parameter in single precision, and rounds the moments again. Small tensors keep theirs whole.
//!
//! Source: arXiv 2110.02861; `optimizer_update_8bit_blockwise_pytorch` of bitsandbytes 0.50.2.

use burn::optim::{AdamW, AdamWState, LearningRate, Optimizer, RecordState, StateSink, StateSource};
use burn::tensor::{Bytes, DType, Device, Tensor, TensorData};
use peft_core::quant::scales::{dynamic_map, dynamic_map_unsigned, nearest};

/// Numbers that share a scale.
const BLOCK: usize = 256;
/// Tensors with fewer numbers keep their moments whole: `min_8bit_size`.
const SMALLEST: usize = 4096;

/// AdamW in 8 bits.
#[derive(Clone)]
pub(crate) struct AdamW8bit {
    pub(crate) beta_1: f64,
    pub(crate) beta_2: f64,
    pub(crate) epsilon: f64,
    pub(crate) decay: f64,
    /// For small tensors.
    pub(crate) whole: AdamW,
}

/// The moments of a tensor.
#[derive(Clone)]
pub(crate) enum Moments<const D: usize> {
    Whole(Box<AdamWState<D>>),
    Blocks(Blocks),
}

/// Moments in 8 bits. They lie on the host, where they are widened.
#[derive(Clone)]
pub(crate) struct Blocks {
    /// Steps so far.
    time: usize,
    first: Codes,
    second: Codes,
}

/// One moment: codes, and the largest number of each block.
#[derive(Clone)]
struct Codes {
    codes: Vec<u8>,
    largest: Vec<f32>,
}

impl Codes {
    /// Nothing but zeros: the largest number of a block is 0, whatever its codes are.
    fn zeros(count: usize) -> Self {
        Self { codes: vec![0; count], largest: vec![0.0; count.div_ceil(BLOCK)] }
    }

    /// Widens a block, lets `change` have it, and rounds it again.
    fn change(&mut self, block: usize, values: &[f32; 256], change: impl FnOnce(&mut [f32])) {
        let start = block * BLOCK;
        let end = (start + BLOCK).min(self.codes.len());
        let (codes, largest) = (&mut self.codes[start..end], &mut self.largest[block]);
        let mut wide = [0.0; BLOCK];
        let wide = &mut wide[..codes.len()];
        for (to, code) in wide.iter_mut().zip(&*codes) {
            *to = values[usize::from(*code)] * *largest;
        }
        change(wide);
        let most = wide.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        *largest = if most > 0.0 { most } else { 1.0 };
        for (code, x) in codes.iter_mut().zip(&*wide) {
            *code = nearest(values, x / *largest);
        }
    }

    fn flatten(&self, prefix: &str, name: &str, out: &mut StateSink) {
        let count = self.codes.len();
        let codes = TensorData::from_bytes(Bytes::from_bytes_vec(self.codes.clone()), [count], DType::U8);
        out.push_tensor(prefix, &format!("{name}_codes"), codes);
        let largest = TensorData::new(self.largest.clone(), [self.largest.len()]);
        out.push_tensor(prefix, &format!("{name}_absmax"), largest);
    }

    fn unflatten(prefix: &str, name: &str, src: &mut StateSource) -> Option<Self> {
        let codes = src.take_tensor(prefix, &format!("{name}_codes"))?.as_bytes().to_vec();
        let largest: Vec<f32> = src.take_tensor(prefix, &format!("{name}_absmax"))?.iter::<f32>().collect();
        (largest.len() == codes.len().div_ceil(BLOCK)).then_some(Self { codes, largest })
    }
}

impl<const D: usize> RecordState for Moments<D> {
    fn state_flatten(&self, prefix: &str, out: &mut StateSink) {
        match self {
            Self::Whole(state) => state.state_flatten(prefix, out),
            Self::Blocks(blocks) => {
                out.push_scalar(prefix, "time", blocks.time.into());
                blocks.first.flatten(prefix, "moment_1", out);
                blocks.second.flatten(prefix, "moment_2", out);
            }
        }
    }

    fn state_unflatten(prefix: &str, src: &mut StateSource, device: &Device) -> Option<Self> {
        let Some(first) = Codes::unflatten(prefix, "moment_1", src) else {
            return AdamWState::state_unflatten(prefix, src, device).map(|it| Self::Whole(Box::new(it)));
        };
        let second = Codes::unflatten(prefix, "moment_2", src)?;
        let time = usize::try_from(src.take_scalar(prefix, "time")?).ok()?;
        (first.codes.len() == second.codes.len()).then_some(Self::Blocks(Blocks { time, first, second }))
    }
}

impl AdamW8bit {
    /// Moves numbers against their gradient.
    fn step_blocks(&self, lr: LearningRate, numbers: &mut [f32], grad: &[f32], state: &mut Blocks) {
        state.time += 1;
        let time = i32::try_from(state.time).unwrap_or(i32::MAX);
        let (beta_1, beta_2) = (self.beta_1 as f32, self.beta_2 as f32);
        let (new_1, new_2) = ((1.0 - self.beta_1) as f32, (1.0 - self.beta_2) as f32);
        let correction = (1.0 - self.beta_2.powi(time)).sqrt() as f32;
        let rate = (lr / (1.0 - self.beta_1.powi(time))) as f32;
        let (kept, epsilon) = ((1.0 - lr * self.decay) as f32, self.epsilon as f32);
        let mut first = [0.0; BLOCK];
        for (block, (numbers, grad)) in numbers.chunks_mut(BLOCK).zip(grad.chunks(BLOCK)).enumerate() {
            let first = &mut first[..grad.len()];
            state.first.change(block, dynamic_map(), |moment| {
                for (m, g) in moment.iter_mut().zip(grad) {
                    *m = *m * beta_1 + g * new_1;
                }
                first.copy_from_slice(moment);
            });
            state.second.change(block, dynamic_map_unsigned(), |moment| {
                for (((v, m), g), x) in moment.iter_mut().zip(&*first).zip(grad).zip(numbers) {
                    *v = *v * beta_2 + g * g * new_2;
                    *x = *x * kept - rate * (m / (v.sqrt() / correction + epsilon));
                }
            });
        }
    }
}

impl Optimizer for AdamW8bit {
    type State<const D: usize> = Moments<D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        let (shape, device) = (tensor.shape(), tensor.device());
        let count = shape.num_elements();
        let mut blocks = match state {
            None if count < SMALLEST => {
                let (tensor, state) = self.whole.step(lr, tensor, grad, None);
                return (tensor, state.map(|it| Moments::Whole(Box::new(it))));
            }
            Some(Moments::Whole(state)) => {
                let (tensor, state) = self.whole.step(lr, tensor, grad, Some(*state));
                return (tensor, state.map(|it| Moments::Whole(Box::new(it))));
            }
            Some(Moments::Blocks(blocks)) => blocks,
            None => Blocks { time: 0, first: Codes::zeros(count), second: Codes::zeros(count) },
        };
        let floats = |it: Tensor<D>| it.into_data().iter::<f32>().collect::<Vec<f32>>();
        let (mut numbers, grad) = (floats(tensor), floats(grad));
        self.step_blocks(lr, &mut numbers, &grad, &mut blocks);
        (Tensor::from_data(TensorData::new(numbers, shape), &device), Some(Moments::Blocks(blocks)))
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        match state {
            Moments::Whole(state) => Moments::Whole(Box::new(AdamW::to_device(*state, device))),
            blocks => blocks,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use burn::optim::AdamWConfig;
    use peft_core::files::checkpoint::TensorFile;

    use super::*;

    fn optimizer() -> AdamW8bit {
        let whole = AdamWConfig::new().with_weight_decay(0.05).with_epsilon(1e-8).build();
        AdamW8bit { beta_1: 0.9, beta_2: 0.999, epsilon: 1e-8, decay: 0.05, whole }
    }

    fn tensor(numbers: &[f32]) -> Tensor<1> {
        Tensor::from_data(TensorData::new(numbers.to_vec(), [numbers.len()]), &Device::default())
    }

    fn values(tensor: Tensor<1>) -> Vec<f32> {
        tensor.into_data().iter::<f32>().collect()
    }

    /// Three steps of `fixtures/quantised/adamw_8bit.safetensors`, parameter and codes.
    #[test]
    fn steps_and_codes_are_those_of_the_reference() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/quantised/adamw_8bit.safetensors");
        let file = TensorFile::open(file).unwrap();
        let floats = |key: &str| -> Vec<f32> { file.floats(key).unwrap().iter::<f32>().collect() };
        assert_eq!(dynamic_map_unsigned().to_vec(), floats("map"));
        let (mut weight, grads) = (tensor(&floats("weight")), floats("grads"));
        let count = weight.dims()[0];
        let mut state = None;
        for grad in grads.chunks(count) {
            (weight, state) = optimizer().step(0.01, weight, tensor(grad), state);
        }
        for (at, (ours, theirs)) in values(weight).iter().zip(floats("stepped")).enumerate() {
            assert!((ours - theirs).abs() <= 1e-5 * theirs.abs().max(1.0), "{at}: {ours} is not {theirs}");
        }
        let Some(Moments::Blocks(blocks)) = state else { panic!("moments of {count} numbers are kept whole") };
        for (name, moment) in [("1", &blocks.first), ("2", &blocks.second)] {
            for (ours, theirs) in moment.largest.iter().zip(floats(&format!("absmax_{name}"))) {
                assert!((ours - theirs).abs() <= 1e-6 * theirs, "{ours} is not {theirs}");
            }
            // A number in the middle between two values goes either way by the last bit of a sum.
            let theirs = file.raw(&format!("codes_{name}")).unwrap();
            let off = moment.codes.iter().zip(theirs).filter(|(a, b)| a != b).count();
            assert!(off <= count / 500, "{off} of {count} codes differ");
        }
    }

    #[test]
    fn small_tensors_step_as_without_it() {
        let (weight, grad) = (tensor(&[1.0, -2.0, 3.0]), tensor(&[0.5, 0.1, -0.2]));
        let (ours, state) = optimizer().step(0.1, weight.clone(), grad.clone(), None);
        assert!(matches!(state, Some(Moments::Whole(_))));
        assert_eq!(values(ours), values(optimizer().whole.step(0.1, weight, grad, None).0));
    }

    #[test]
    fn moments_survive_their_record() {
        let numbers: Vec<f32> = (0..5000).map(|it| ((it * 37) % 101) as f32 / 50.0 - 1.0).collect();
        let (weight, state) = optimizer().step(0.1, tensor(&numbers), tensor(&numbers), None);
        let mut sink = StateSink::default();
        state.clone().unwrap().state_flatten("7", &mut sink);
        let mut source = StateSource::new(sink.scalars.into_iter().collect());
        let bytes: usize = sink.tensors.iter().map(|it| it.1.as_bytes().len()).sum();
        assert!(bytes < 5000 * 21 / 10, "{bytes} bytes for 5000 numbers");
        sink.tensors.into_iter().for_each(|(name, data)| source.insert_tensor(name, data));
        let read = Moments::state_unflatten("7", &mut source, &Device::default()).unwrap();
        let next = |state| values(optimizer().step(0.1, weight.clone(), tensor(&numbers), state).0);
        assert_eq!(next(Some(read)), next(state));
    }
}

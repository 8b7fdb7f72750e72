//! The nets that these tests adapt, and what is asked of them.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Int, Tensor, TensorData, activation};
use peft::core::{Names, PeftConfig, PeftModel, nn};
use peft::ia3::Ia3Config;
use peft::lora::{
    AdaLoraConfig, BoftConfig, FourierFtConfig, HiraConfig, LnTuningConfig, LoHaConfig, LoKrConfig, LoraConfig,
    MissConfig, OftConfig, RandLoraConfig, ShiraConfig, VeraConfig,
};
use peft::models::auto::{self, AutoCausalLm};
use peft::models::{CausalLm, ModelInput};

use crate::support::{device, fixtures, numbers};

/// Two linear layers and what is between, as the reference's smallest net.
#[derive(Module, Debug)]
pub(super) struct Mlp {
    pub(super) lin0: Linear,
    pub(super) lin1: Linear,
}

impl Mlp {
    pub(super) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        activation::log_softmax(self.lin1.forward(activation::relu(self.lin0.forward(x))), 1)
    }
}

pub(super) fn mlp() -> PeftModel<Mlp> {
    let net = Mlp { lin0: LinearConfig::new(12, 20).init(&device()), lin1: LinearConfig::new(20, 8).init(&device()) };
    PeftModel::of_module(net)
}

pub(super) fn input() -> Tensor<2> {
    let values: Vec<f32> = (0..60u8).map(|it| f32::from(it) * 0.37 % 2.0 - 1.0).collect();
    Tensor::from_data(TensorData::new(values, [5, 12]), &device())
}

pub(super) fn output(peft: &PeftModel<Mlp>) -> TensorData {
    peft.model().valid().forward(input()).into_data()
}

pub(super) fn lora(targets: &[&str]) -> LoraConfig {
    LoraConfig::new(3, 5.0).targets(targets.iter().copied())
}

/// Every method that changes the weights of linear layers, on the layers that are named.
pub(super) fn methods(targets: &[&str]) -> Vec<(&'static str, Box<dyn PeftConfig>)> {
    let names = || Some(Names::list(targets.iter().copied()));
    vec![
        ("lora", Box::new(lora(targets))),
        ("dora", Box::new(LoraConfig { use_dora: true, ..lora(targets) })),
        (
            "ia3",
            Box::new(Ia3Config {
                target_modules: names(),
                feedforward_modules: Some(Names::list([""; 0])),
                ..Ia3Config::default()
            }),
        ),
        ("adalora", {
            let lora = LoraConfig { target_modules: names(), ..LoraConfig::default() };
            Box::new(AdaLoraConfig { lora, total_step: Some(10), init_r: 4, ..AdaLoraConfig::default() })
        }),
        ("loha", Box::new(LoHaConfig { r: 3, target_modules: names(), ..LoHaConfig::default() })),
        ("lokr", Box::new(LoKrConfig { r: 2, target_modules: names(), ..LoKrConfig::default() })),
        ("miss", Box::new(MissConfig { r: 4, target_modules: names(), ..MissConfig::default() })),
        ("hira", Box::new(HiraConfig { r: 3, target_modules: names(), ..HiraConfig::default() })),
        ("shira", Box::new(ShiraConfig { r: 2, target_modules: names(), ..ShiraConfig::default() })),
        ("oft", Box::new(OftConfig { oft_block_size: 4, target_modules: names(), ..OftConfig::default() })),
        ("boft", Box::new(BoftConfig { boft_block_size: 4, target_modules: names(), ..BoftConfig::default() })),
        (
            "fourierft",
            Box::new(FourierFtConfig { n_frequency: 10, target_modules: names(), ..FourierFtConfig::default() }),
        ),
        ("randlora", Box::new(RandLoraConfig { r: 4, target_modules: names(), ..RandLoraConfig::default() })),
        ("vera", Box::new(VeraConfig { r: 4, d_initial: 0.5, target_modules: names(), ..VeraConfig::default() })),
        ("ln_tuning", Box::new(LnTuningConfig { target_modules: names(), ..LnTuningConfig::default() })),
    ]
}

/// Keys of the tensors that a loss reaches.
pub(super) fn reached(peft: &PeftModel<Mlp>, name: &str) -> Vec<String> {
    let gradients = nn::set_training(peft.model().clone(), false).forward(input()).sum().backward();
    peft.adapter_gradients(name, &gradients).unwrap().into_iter().map(|it| it.key).collect()
}

/// As [`reached`] where nothing at all may be trained.
pub(super) fn reached_quietly(peft: &PeftModel<Mlp>, name: &str) -> Vec<String> {
    let tracked = Tensor::<2>::from_data(input().into_data(), &device().autodiff()).require_grad();
    let gradients = nn::set_training(peft.model().clone(), false).forward(tracked).sum().backward();
    peft.adapter_gradients(name, &gradients).unwrap().into_iter().map(|it| it.key).collect()
}

pub(super) fn llama() -> PeftModel<AutoCausalLm> {
    let (model, _) = auto::load_causal_lm(fixtures().join("models/llama-tiny"), &device()).unwrap();
    let spec = peft::core::Adaptable::spec(&model);
    PeftModel::with_spec(model, spec)
}

pub(super) fn ids(rows: usize) -> Tensor<2, Int> {
    let values: Vec<i64> = (0..rows as i64 * 5).map(|it| it * 13 % 97 + 3).collect();
    Tensor::from_data(TensorData::new(values, [rows, 5]), &device())
}

pub(super) fn logits_of(model: &AutoCausalLm, ids: Tensor<2, Int>) -> TensorData {
    nn::set_training(model.clone(), false).logits(&ModelInput::ids(ids), None).into_data()
}

/// Of a batch with so many rows.
pub(super) fn logits(model: &AutoCausalLm, rows: usize) -> TensorData {
    logits_of(model, ids(rows))
}

pub(super) fn two_rows() -> Tensor<2, Int> {
    Tensor::from_data(TensorData::from([[5i64, 17, 3, 88, 41, 9], [60, 2, 77, 13, 1, 30]]), &device())
}

pub(super) const WEIGHTS: [(&str, f64); 3] = [("first", 0.7), ("second", -1.3), ("third", 0.4)];

/// With the three adapters that were recorded for combinations.
pub(super) fn loaded() -> PeftModel<AutoCausalLm> {
    let mut peft = llama();
    for (name, _) in WEIGHTS {
        peft.load_adapter(fixtures().join("combined").join(name), name, &peft::methods()).unwrap();
    }
    peft
}

pub(super) fn deltas(peft: &PeftModel<Mlp>, name: &str) -> Vec<Vec<f64>> {
    peft.updates(name).unwrap().iter().map(|it| numbers(&it.delta.to_data())).collect()
}

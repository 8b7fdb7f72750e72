//! Layers that a user declares, under names that `burn::nn` has too.

use burn::module::{Module, Param};
use burn::tensor::{Device, Distribution, Tensor};
use peft::core::files::checkpoint::model_tensors;
use peft::core::{Layout, ModelSpec, ParamKind, PeftModel};
use peft::lora::LoraConfig;

use crate::support::device;

/// Not Burn's: the weight is `[out, in]`.
#[derive(Module, Debug)]
struct Linear {
    weight: Param<Tensor<2>>,
    bias: Param<Tensor<1>>,
}

#[derive(Module, Debug)]
struct Net {
    own: Linear,
    burns: burn::nn::Linear,
}

fn net(device: &Device) -> Net {
    let random = |shape| Tensor::random(shape, Distribution::Default, device);
    let own =
        Linear { weight: Param::from_tensor(random([3, 5])), bias: Param::from_tensor(Tensor::zeros([3], device)) };
    Net { own, burns: burn::nn::LinearConfig::new(3, 2).init(device) }
}

#[test]
fn a_linear_of_another_layout_is_not_taken_for_burns() {
    let spec = ModelSpec::of(&net(&device()));
    assert_eq!(spec.get("own.weight").unwrap().kind, ParamKind::Other);
    assert_eq!(spec.get("burns.weight").unwrap().kind, ParamKind::Linear(Layout::InOut));
    let shape = |key: &str| {
        let stored = model_tensors(&net(&device()));
        stored.iter().find(|it| it.key == key).unwrap().data.shape().as_slice().to_vec()
    };
    assert_eq!(shape("own.weight"), [3, 5], "written as it lies");
    assert_eq!(shape("burns.weight"), [2, 3], "written as torch's");
}

#[test]
fn an_unknown_layer_is_adapted_once_its_kind_is_declared() {
    let lora = || LoraConfig::new(2, 4.0).targets(["own"]);
    let mut model = PeftModel::of_module(net(&device()));
    let error = model.add_adapter(lora()).unwrap_err().to_string();
    assert!(error.contains("`Linear`") && error.contains("with_kind"), "{error}");

    let net = net(&device());
    let spec = ModelSpec::of(&net).with_kind("own", ParamKind::Linear(Layout::OutIn));
    let mut model = PeftModel::with_spec(net, spec);
    model.add_adapter(lora()).unwrap();
    let shapes: Vec<_> = model.adapter_tensors("default").unwrap();
    let shape = |end: &str| shapes.iter().find(|it| it.key.ends_with(end)).unwrap().data.shape().as_slice().to_vec();
    assert_eq!([shape("lora_A.weight"), shape("lora_B.weight")], [[2, 5], [3, 2]]);
}

#[test]
fn every_law_holds_in_one_call() {
    use burn::tensor::TensorData;
    use peft::core::forward::Adapted;
    use peft::core::laws::{self, Promises};

    let layer = burn::nn::LinearConfig::new(3, 2).init(&device());
    let input = || Tensor::<2>::from_data(TensorData::from([[1.0f32, -2.0, 0.5], [0.3, 0.1, 2.0]]), &device());
    laws::all(
        || PeftModel::of_module(Dense { layer: layer.clone() }),
        || LoraConfig::new(2, 4.0).targets(["layer"]),
        &peft::methods(),
        Promises::default(),
        |net: &Dense| net.layer.adapted(input()),
    );
}

#[derive(Module, Debug)]
struct Dense {
    layer: burn::nn::Linear,
}

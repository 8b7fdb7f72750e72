//! What the layers of a model are given while data passes through it: for starts that are drawn from data.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::Tensor;
use peft_core::adapter::slots;
use peft_core::forward::LinearBelow;
use peft_core::{
    Adapter, AdapterBuilder, AnyAdapter, BaseTensor, Init, ParamSpec, PeftError, PeftModel, Plan, PlanRow, nn,
};

/// Factors that data gave to layers, by the paths of these. They belong to one model and one configuration.
#[derive(Debug, Clone, Default)]
pub struct DataInit(Arc<HashMap<String, InitialFactors>>);

/// The factors of one layer.
#[derive(Debug, Clone)]
pub(crate) struct InitialFactors {
    /// `[rank, in]`
    pub(crate) a: Tensor<2>,
    /// `[out, rank]`: subtracted from the update, which is zero at the start. Without it `B` is zero.
    pub(crate) b: Option<Tensor<2>>,
    /// Whether it is a part of the update, and not subtracted.
    pub(crate) stays: bool,
}

impl DataInit {
    pub(crate) fn new(given: HashMap<String, InitialFactors>) -> Self {
        Self(Arc::new(given))
    }

    /// Whether updates are counted from where they started.
    pub(crate) fn are_subtracted(&self) -> bool {
        self.0.values().any(|it| it.b.is_some() && !it.stays)
    }

    pub(crate) fn get(&self, module: &str) -> Option<&InitialFactors> {
        self.0.get(module)
    }
}

type Seen = Arc<dyn Fn(&LinearBelow<'_>, &Tensor<2>) + Send + Sync>;

/// The bare model, without adapters and dropout, in which layers show their input, `[rows, in]`, before they use it.
pub(crate) fn watched<M: Module>(
    peft: &PeftModel<M>,
    layers: &[Arc<ParamSpec>],
    seen: impl Fn(&LinearBelow<'_>, &Tensor<2>) + Send + Sync + 'static,
) -> M {
    const NAME: &str = "watch";
    let seen = BuildWatch(Arc::new(seen));
    let mut plan = Plan::new(NAME, peft.spec());
    plan.rows = layers
        .iter()
        .map(|param| PlanRow { param: param.clone(), label: NAME.into(), parameters: 0, build: Arc::new(seen.clone()) })
        .collect();
    let base = slots::strip(peft.model().valid());
    let watching = plan.apply(base, NAME, 0, &peft.device().without_autodiff());
    nn::set_training(slots::edit(watching, |set| set.activated(&[NAME.to_owned()])), false)
}

/// The error for a layer that no forward came through.
pub(crate) fn unseen(module: &str) -> PeftError {
    PeftError::config("target_modules", format!("names `{module}`, which the calibration data never reaches"))
}

/// An adapter that changes nothing and shows what its layer is given.
#[derive(Module, Debug)]
struct Watch {
    #[module(skip)]
    seen: BuildWatch,
}

impl Adapter for Watch {
    fn weight<const D: usize>(&self, weight: Tensor<D>, _base: &Tensor<D>, _param: &ParamSpec) -> Tensor<D> {
        weight
    }

    fn linear(&self, input: Tensor<2>, below: &LinearBelow<'_>) -> Tensor<2> {
        (self.seen.0)(below, &input);
        below.forward(input)
    }
}

#[derive(Clone)]
struct BuildWatch(Seen);

impl Debug for BuildWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}

impl AdapterBuilder for BuildWatch {
    fn build(&self, _base: BaseTensor, _init: &mut Init) -> AnyAdapter {
        AnyAdapter::new(Watch { seen: self.clone() })
    }
}

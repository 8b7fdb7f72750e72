//! A plan: what a configuration will do to a model, as data.
//!
//! Planning touches no tensor and says everything that is wrong. Applying a plan cannot fail.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fmt::Debug;
use std::sync::Arc;

use burn::module::{Module, Param, ParamId};
use burn::tensor::{Device, Tensor};
use serde_json::{Map, Value};

use crate::adapter::slots;
use crate::adapter::{AdapterSet, AnyAdapter};
use crate::erased::{Ranked, with_rank};
use crate::error::Result;
use crate::ops;
use crate::plan::init::{Init, stable_hash};
use crate::plan::memory::check_memory_of_new;
use crate::spec::{
    Layout, MapParams, ModelSpec, ParamKind, ParamSpec, PathStack, VisitParams, map_params, short_name, visit_params,
};

/// Makes the adapter of one parameter: what a method puts into a [`PlanRow`].
pub trait AdapterBuilder: Debug + Send + Sync {
    /// The adapter with its starting values.
    ///
    /// Make its parameters with `init`, which puts them on the device of the adapter, lets them have gradients, and draws by
    /// the seed, the adapter's name and the parameter's path. They must have as many trainable elements as
    /// [`PlanRow::parameters`] says, which is what is printed and counted. `base` is read only if it is asked for:
    /// [`BaseTensor::tensor`] and [`BaseTensor::matrix`] give single precision, a copy of a base in half precision.
    fn build(&self, base: BaseTensor<'_>, init: &mut Init) -> AnyAdapter;

    /// Keys and shapes of the tensors that the adapter of this parameter has in a file, for those who want to compare
    /// without building. Keys are whole, prefix included: `param.file_key("lora_A.weight")`. Nothing if the method does not
    /// say.
    fn tensors(&self, _param: &ParamSpec) -> Option<Vec<(String, Vec<usize>)>> {
        None
    }
}

/// The frozen parameter that an adapter is built for. Models are lazy: its value is made when a method asks for it.
pub struct BaseTensor<'a> {
    param: Arc<ParamSpec>,
    value: Base<'a>,
}

enum Base<'a> {
    /// A `Param<Tensor<D>>`.
    Param(&'a dyn Any),
    Value(Ranked),
}

impl<'a> BaseTensor<'a> {
    pub(crate) fn new(param: Arc<ParamSpec>, tensor: Ranked) -> Self {
        Self { param, value: Base::Value(tensor) }
    }

    fn of<const D: usize>(param: Arc<ParamSpec>, value: &'a Param<Tensor<D>>) -> Self {
        Self { param, value: Base::Param(value) }
    }

    /// The parameter's place.
    pub fn param(&self) -> &Arc<ParamSpec> {
        &self.param
    }

    /// The value as it lies in memory, in single precision.
    ///
    /// # Panics
    /// If the parameter has another rank; [`ParamSpec::shape`] tells it.
    pub fn tensor<const D: usize>(self) -> Tensor<D> {
        match self.value {
            Base::Value(value) => value.get(),
            Base::Param(param) => {
                let param = param.downcast_ref::<Param<Tensor<D>>>();
                ops::to_f32(param.expect("the rank is that of the description").base().without_autodiff())
            }
        }
    }

    /// The value as a matrix: `[out, in]` for a linear layer however it is stored, `[rows, d_model]` for a table,
    /// `[out, in / groups · kernel]` for a convolution, `[1, n]` for a vector.
    pub fn matrix(self) -> Tensor<2> {
        let (d_in, d_out) = self.param.features();
        let rank = self.param.shape.len();
        match self.param.kind {
            ParamKind::Linear(Layout::OutIn) | ParamKind::Embedding => self.tensor(),
            ParamKind::Linear(Layout::InOut) => self.tensor::<2>().transpose(),
            ParamKind::Conv => with_rank!(rank, D => self.tensor::<D>().reshape([d_out, d_in])),
            ParamKind::Other | ParamKind::Buffer => with_rank!(rank, D => self.tensor::<D>().reshape([1, d_out])),
        }
    }
}

/// What a plan does to one parameter.
#[derive(Debug, Clone)]
pub struct PlanRow {
    /// The parameter.
    pub param: Arc<ParamSpec>,
    /// The settings in a few characters: `r=8 α=16`.
    pub label: String,
    /// Trainable elements that the adapter adds: as many as [`AdapterBuilder::build`] makes.
    pub parameters: usize,
    /// Makes the adapter.
    pub build: Arc<dyn AdapterBuilder>,
}

/// What a configuration will do to a model.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The method's name, for people.
    pub method: String,
    /// One row for every adapted parameter.
    pub rows: Vec<PlanRow>,
    /// The rows in their place for a folder that holds prompts without the encoders that made them; nothing for methods
    /// that train what they save.
    pub export_form: Option<Vec<PlanRow>>,
    /// Elements of the model without the adapter.
    pub base_parameters: usize,
    /// Elements that are made once for all rows and never trained, such as VeRA's projections.
    pub shared_elements: usize,
    /// Target names that matched nothing.
    pub unmatched: Vec<String>,
    /// The same of names that stand for parameters, `target_parameters`.
    pub unmatched_parameters: Vec<String>,
    /// What keeps fresh values from being what the configuration says, as a text that nobody split into tokens. It does
    /// not matter to a folder, which has values.
    pub missing_data: Option<String>,
    /// Why the adapter cannot be on weights that are quantised, if it cannot.
    pub wants_full_precision: Option<String>,
    /// Fields of the configuration that were not given and that the model decides, as they are to be saved.
    pub derived: Map<String, Value>,
    /// What a user should know although nothing is wrong.
    pub notes: Vec<String>,
    /// Why the reference cannot load the adapter: `PEFT has no OFT for Conv1D layers`.
    pub not_in_reference: Vec<String>,
}

impl Plan {
    /// An empty plan for a model.
    pub fn new(method: impl Into<String>, spec: &ModelSpec) -> Self {
        Self { method: method.into(), base_parameters: spec.parameters(), ..Self::default() }
    }

    /// The plan for a folder that holds prompts without the encoders that made them.
    pub fn without_encoders(mut self) -> Self {
        self.rows = self.export_form.take().unwrap_or(self.rows);
        self
    }

    /// Keys and shapes of all tensors of the file, if every row says its own.
    pub fn tensors(&self) -> Option<BTreeMap<String, Vec<usize>>> {
        let rows = self.rows.iter().map(|row| row.build.tensors(&row.param)).collect::<Option<Vec<_>>>()?;
        Some(rows.into_iter().flatten().collect())
    }

    /// Trainable elements.
    pub fn trainable(&self) -> usize {
        self.rows.iter().fold(0, |sum, it| sum.saturating_add(it.parameters))
    }

    /// Refuses a plan whose adapter does not fit into the memory of the machine.
    ///
    /// # Errors
    /// Says how much it needs and how much there is.
    pub fn check_memory(&self, device: &Device) -> Result<()> {
        let rows = self.rows.iter().map(|it| it.parameters as u64);
        let elements = rows.fold(self.shared_elements as u64, u64::saturating_add);
        check_memory_of_new(
            &format!("the adapter ({} on {} parameters)", self.method, self.rows.len()),
            elements,
            device,
        )
    }

    /// Trainable elements over all elements, base and adapter, as `print_trainable_parameters` counts.
    pub fn share(&self) -> f64 {
        self.trainable() as f64 / (self.base_parameters + self.trainable()).max(1) as f64
    }

    /// The model with one adapter more, trainable, on `device`. It is not active yet.
    pub fn apply<M: Module>(&self, model: M, name: &str, seed: u64, device: &Device) -> M {
        let mut builder = BuildAdapters {
            rows: self.rows.iter().map(|row| (row.param.path(), row)).collect(),
            name,
            seed,
            device,
            built: HashMap::new(),
            biases: Vec::new(),
        };
        visit_params(&model, &mut builder);
        let mut built = builder.built;
        let mut sets: Vec<AdapterSet> = slots::collect(&model);
        // An empty set on a bias settles what the adapter on the weight does to it.
        for bias in builder.biases {
            let has_set = sets.iter().any(|set| set.param().path() == bias.path()) || built.contains_key(&bias.path());
            let is_pending = self.rows.iter().any(|row| {
                row.param.module == bias.module && built.get(&row.param.path()).is_some_and(AnyAdapter::touches_bias)
            });
            if is_pending && !has_set {
                sets.push(AdapterSet::new(bias));
            }
        }
        for set in &mut sets {
            if let Some(adapter) = built.remove(&set.param().path()) {
                *set = set.clone().with(name, adapter);
            }
        }
        for row in &self.rows {
            if let Some(adapter) = built.remove(&row.param.path()) {
                sets.push(AdapterSet::new(row.param.clone()).with(name, adapter));
            }
        }
        slots::replace(model, sets)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut groups: BTreeMap<(String, &str), usize> = BTreeMap::new();
        for row in &self.rows {
            let module = short_name(&row.param.module);
            let leaf =
                if row.param.name == "weight" { module.to_owned() } else { format!("{module}.{}", row.param.name) };
            *groups.entry((leaf, row.label.as_str())).or_default() += 1;
        }
        writeln!(f, "{} on {} parameters", self.method, self.rows.len())?;
        for ((leaf, label), count) in &groups {
            writeln!(f, "  {leaf} ×{count}  {label}")?;
        }
        write!(
            f,
            "  {} trainable of {} ({:.4} %)",
            thousands(self.trainable()),
            thousands(self.base_parameters + self.trainable()),
            100.0 * self.share()
        )?;
        for note in &self.notes {
            write!(f, "\n  note: {note}")?;
        }
        for reason in &self.not_in_reference {
            write!(f, "\n  note: {reason}: it cannot load this adapter")?;
        }
        Ok(())
    }
}

/// `1234567` as `1,234,567`.
pub fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

struct BuildAdapters<'a> {
    rows: HashMap<String, &'a PlanRow>,
    name: &'a str,
    seed: u64,
    device: &'a Device,
    built: HashMap<String, AnyAdapter>,
    biases: Vec<Arc<ParamSpec>>,
}

impl VisitParams for BuildAdapters<'_> {
    fn float<const D: usize>(&mut self, at: &PathStack, param: &Param<Tensor<D>>) {
        if at.in_adapters() {
            return;
        }
        let path = at.path();
        let (module, name) = at.split();
        if name == "bias" {
            let shape = param.lazy_shape().as_slice().to_vec();
            let owner = at.owner().to_owned();
            self.biases.push(Arc::new(ParamSpec { module, name, owner, kind: ParamKind::Other, shape }));
        }
        let Some(row) = self.rows.get(&path) else { return };
        let mut init = Init::new(self.seed, self.name, &row.param, self.device);
        let adapter = row.build.build(BaseTensor::of(row.param.clone(), param), &mut init);
        let adapter = map_params(adapter, &mut StableIds { root: format!("{}\0{path}", self.name) });
        self.built.insert(path, adapter);
    }
}

/// Gives every parameter an identity that is the same in every run, so that optimizer state finds it after a restart.
struct StableIds {
    root: String,
}

impl MapParams for StableIds {
    fn float<const D: usize>(&mut self, at: &PathStack, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let id = ParamId::from(stable_hash(&format!("{}\0{}", self.root, at.path())));
        let (_, value, mapper) = param.consume();
        Param::from_mapped_value(id, value, mapper)
    }
}

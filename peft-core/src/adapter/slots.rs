//! Reading and replacing the adapter sets of a model.
//!
//! A Burn visitor or mapper is handed a parameter with its slot emptied, so neither can see or exchange an
//! [`AdapterSet`] from outside. The set itself is visited and mapped, however. While [`collect`] or [`replace`] walks a
//! model, a thread-local tells the sets to hand themselves over instead of walking on. Nothing outside this file sees
//! that detour.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use burn::module::{Module, ModuleVisitor, Param, Reparameterizer};
use burn::tensor::Tensor;

use crate::adapter::pending_bias;
use crate::adapter::{AdapterSet, AnyAdapter};
use crate::error::{PeftError, Result};
use crate::spec::{MapParams, PathStack, map_params};

thread_local! {
    static COLLECTING: RefCell<Option<Vec<AdapterSet>>> = const { RefCell::new(None) };
    static REPLACING: RefCell<Option<HashMap<String, AdapterSet>>> = const { RefCell::new(None) };
}

/// Ends a walk, also when something panics.
struct Clear;

impl Drop for Clear {
    fn drop(&mut self) {
        COLLECTING.set(None);
        REPLACING.set(None);
    }
}

/// Called by a set that is visited: true if it was taken and must not be walked.
pub(crate) fn offer(set: &AdapterSet) -> bool {
    COLLECTING.with_borrow_mut(|taken| match taken {
        Some(taken) => {
            taken.push(set.clone());
            true
        }
        None => false,
    })
}

/// Called by a set that is mapped: the set to put in its place, or itself back to be walked.
pub(crate) fn exchange(set: AdapterSet) -> std::result::Result<AdapterSet, AdapterSet> {
    REPLACING.with_borrow_mut(|waiting| match waiting {
        Some(waiting) => Ok(waiting.remove(&set.param().path()).unwrap_or(set)),
        None => Err(set),
    })
}

/// The adapter sets of a model, in its order.
pub fn collect<M: Module>(model: &M) -> Vec<AdapterSet> {
    struct Nothing;
    impl ModuleVisitor for Nothing {}

    COLLECTING.set(Some(Vec::new()));
    let _clear = Clear;
    model.visit(&mut Nothing);
    COLLECTING.take().unwrap_or_default()
}

/// Puts sets on the parameters that they name; parameters not named keep what they have.
pub fn replace<M: Module>(model: M, sets: impl IntoIterator<Item = AdapterSet>) -> M {
    REPLACING.set(Some(sets.into_iter().map(|set| (set.param().path(), set)).collect()));
    let _clear = Clear;
    map_params(model, &mut Attach)
}

/// Changes every set of a model.
pub fn edit<M: Module>(model: M, change: impl FnMut(AdapterSet) -> AdapterSet) -> M {
    let sets: Vec<AdapterSet> = collect(&model).into_iter().map(change).collect();
    replace(model, sets)
}

/// The model without adapter sets; its parameters are the frozen ones, bit for bit.
pub fn strip<M: Module>(model: M) -> M {
    edit(model, |set| AdapterSet::new(Arc::clone(set.param()))).materialize()
}

/// The model with its active adapters folded into the parameters.
///
/// # Errors
/// If an adapter cannot be folded into weights, or adds a bias to a layer that has none: the plain layer has no place
/// for it.
pub fn merge<M: Module>(model: M) -> Result<M> {
    let mut biases = Biases { wanted: pending_biases(&collect(&model))? };
    let model = map_params(pending_bias::suspended(|| model.materialize()), &mut biases);
    check_biases(biases.wanted.iter())?;
    Ok(model)
}

/// The active adapters that change biases, by the paths of these.
///
/// # Errors
/// If an active adapter cannot be folded into weights.
pub(crate) fn pending_biases(sets: &[AdapterSet]) -> Result<HashMap<String, Vec<AnyAdapter>>> {
    let mut wanted = HashMap::new();
    for set in sets {
        if let Some(reason) = set.active().find_map(AnyAdapter::unmergeable) {
            return Err(PeftError::unsupported(format!("merging into `{}`", set.param().path()), reason));
        }
        let active: Vec<AnyAdapter> = set.active().filter(|it| it.touches_bias()).cloned().collect();
        if !active.is_empty() {
            wanted.insert(format!("{}.bias", set.param().module), active);
        }
    }
    Ok(wanted)
}

/// Refuses adapters on biases that are not there. A layer without a bias has nothing to scale, but also no place for a
/// bias of the adapter's own.
pub(crate) fn check_biases<'a>(mut absent: impl Iterator<Item = (&'a String, &'a Vec<AnyAdapter>)>) -> Result<()> {
    match absent.find(|(_, adapters)| adapters.iter().any(AnyAdapter::needs_bias)) {
        Some((path, _)) => {
            let reason = "the adapter adds a bias where the base layer has none; keep it unmerged";
            Err(PeftError::unsupported(format!("merging into `{path}`"), reason))
        }
        None => Ok(()),
    }
}

/// Folds what adapters do to biases.
struct Biases {
    wanted: HashMap<String, Vec<AnyAdapter>>,
}

impl MapParams for Biases {
    fn float<const D: usize>(&mut self, at: &PathStack, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match self.wanted.remove(&at.path()) {
            Some(active) => param.map(|bias| pending_bias::fold(&active, bias)),
            None => param,
        }
    }
}

/// Fills empty slots. A filled one is exchanged by the set inside, after the parameter itself was mapped.
struct Attach;

impl MapParams for Attach {
    fn float<const D: usize>(&mut self, at: &PathStack, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        // A parameter with a filled slot comes here too. Its set must stay in the waiting room until `exchange` asks
        // for it; attaching here would be undone by Burn, which restores the old slot. So the set is only borrowed.
        let path = at.path();
        let waiting = REPLACING.with_borrow(|it| it.as_ref().and_then(|it| it.get(&path).cloned()));
        match waiting {
            Some(set) => param.apply_reparameterization(Once(Some(set))),
            None => param,
        }
    }
}

/// Puts one set on one parameter.
struct Once(Option<AdapterSet>);

impl Reparameterizer for Once {
    type Reparam = AdapterSet;

    fn reparameterize<const D: usize>(
        &mut self,
        _path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<AdapterSet>) {
        (param, self.0.take())
    }
}

/// Puts a set on one parameter that has none.
pub fn attach<const D: usize>(param: Param<Tensor<D>>, set: AdapterSet) -> Param<Tensor<D>> {
    param.apply_reparameterization(Once(Some(set)))
}

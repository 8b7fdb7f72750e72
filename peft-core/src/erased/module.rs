//! Any Burn module, held as an object.

use std::any::Any;
use std::fmt::{self, Debug, Formatter};
use std::ops::{Deref, DerefMut};

use burn::module::{Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor};
use burn::tensor::Device;

use super::walk::{Erase, ErasedMapper, ErasedVisitor, Restore};

/// A module of any type that can be used as a `T`, which is a trait object such as `dyn Speaks`.
///
/// Burn's `Module` has generic methods, so that there is no `Box<dyn Module>`. This is one: it is a `Module` itself, with
/// the parameters, paths, flags and devices of the module inside and none of its own, and it dereferences to `T` for what
/// the module does beside being one. A call through it costs two virtual calls.
///
/// ```
/// use burn::module::Module;
/// use burn::nn::{Linear, LinearConfig};
/// use burn::tensor::{Device, Tensor};
/// use peft_core::ModelSpec;
/// use peft_core::erased::AnyModule;
///
/// trait Scores {
///     fn scores(&self, input: Tensor<2>) -> Tensor<2>;
/// }
///
/// #[derive(Module, Debug)]
/// struct Small {
///     head: Linear,
/// }
///
/// impl Scores for Small {
///     fn scores(&self, input: Tensor<2>) -> Tensor<2> {
///         self.head.forward(input)
///     }
/// }
///
/// let device = Device::default();
/// let small = Small { head: LinearConfig::new(2, 3).init(&device) };
/// let any: AnyModule<dyn Scores> = AnyModule::new(small, |it| it, |it| it);
/// assert_eq!(any.scores(Tensor::ones([1, 2], &device)).dims(), [1, 3]);
///
/// let paths: Vec<String> = ModelSpec::of(&any).iter().map(|it| it.path()).collect();
/// assert_eq!(paths, ["head.weight", "head.bias"]);
/// assert!(any.downcast_ref::<Small>().is_some());
/// ```
pub struct AnyModule<T: ?Sized>(Box<dyn DynModule<T>>);

impl<T: ?Sized + 'static> AnyModule<T> {
    /// Puts a module behind an object. `view` and `view_mut` say how it is used as a `T`: both are `|it| it` where it
    /// implements the trait.
    pub fn new<M: Module + ModuleDisplay + Sync + 'static>(
        module: M,
        view: fn(&M) -> &T,
        view_mut: fn(&mut M) -> &mut T,
    ) -> Self {
        Self(Box::new(Typed { module, view, view_mut }))
    }

    /// The module, if it is an `M`.
    pub fn downcast_ref<M: 'static>(&self) -> Option<&M> {
        self.0.as_any().downcast_ref()
    }

    /// The module, if it is an `M`, to be changed.
    pub fn downcast_mut<M: 'static>(&mut self) -> Option<&mut M> {
        self.0.as_any_mut().downcast_mut()
    }

    /// The module itself.
    ///
    /// # Errors
    /// The object as it was, if the module is no `M`.
    pub fn downcast<M: 'static>(self) -> Result<M, Self> {
        match self.0.as_any().is::<M>() {
            true => Ok(*self.0.into_any().downcast().expect("its type was just asked for")),
            false => Err(self),
        }
    }
}

impl<T: ?Sized> Deref for AnyModule<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.view()
    }
}

impl<T: ?Sized> DerefMut for AnyModule<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.view_mut()
    }
}

impl<T: ?Sized> Clone for AnyModule<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone_dyn())
    }
}

impl<T: ?Sized> Debug for AnyModule<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T: ?Sized> ModuleDisplayDefault for AnyModule<T> {
    fn content(&self, content: Content) -> Option<Content> {
        self.0.content(content)
    }

    fn num_params(&self) -> usize {
        self.0.num_params()
    }
}

impl<T: ?Sized> ModuleDisplay for AnyModule<T> {}

impl<T: ?Sized + 'static> Module for AnyModule<T> {
    fn collect_devices(&self, devices: Devices) -> Devices {
        self.0.collect_devices(devices)
    }
    fn fork(self, device: &Device) -> Self {
        Self(self.0.fork(device))
    }
    fn to_device(self, device: &Device) -> Self {
        Self(self.0.to_device(device))
    }
    fn train(self) -> Self {
        Self(self.0.train())
    }
    fn valid(&self) -> Self {
        Self(self.0.valid())
    }
    fn materialize(self) -> Self {
        Self(self.0.materialize())
    }
    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        self.0.visit(&mut Restore(visitor));
    }
    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        Self(self.0.map(&mut Restore(mapper)))
    }
}

/// The object-safe side of [`Module`].
trait DynModule<T: ?Sized>: Debug + Send + Sync {
    fn view(&self) -> &T;
    fn view_mut(&mut self) -> &mut T;
    fn visit(&self, visitor: &mut dyn ErasedVisitor);
    fn map(self: Box<Self>, mapper: &mut dyn ErasedMapper) -> Box<dyn DynModule<T>>;
    fn collect_devices(&self, devices: Devices) -> Devices;
    fn fork(self: Box<Self>, device: &Device) -> Box<dyn DynModule<T>>;
    fn to_device(self: Box<Self>, device: &Device) -> Box<dyn DynModule<T>>;
    fn train(self: Box<Self>) -> Box<dyn DynModule<T>>;
    fn valid(&self) -> Box<dyn DynModule<T>>;
    fn materialize(self: Box<Self>) -> Box<dyn DynModule<T>>;
    fn clone_dyn(&self) -> Box<dyn DynModule<T>>;
    fn content(&self, content: Content) -> Option<Content>;
    fn num_params(&self) -> usize;
    fn as_any(&self) -> &dyn Any;
    fn as_any_mut(&mut self) -> &mut dyn Any;
    fn into_any(self: Box<Self>) -> Box<dyn Any>;
}

struct Typed<M, T: ?Sized> {
    module: M,
    view: fn(&M) -> &T,
    view_mut: fn(&mut M) -> &mut T,
}

impl<M, T: ?Sized> Typed<M, T> {
    fn boxed(&self, module: M) -> Box<Self> {
        Box::new(Self { module, view: self.view, view_mut: self.view_mut })
    }

    fn change(self, change: impl FnOnce(M) -> M) -> Box<Self> {
        let Self { module, view, view_mut } = self;
        Box::new(Self { module: change(module), view, view_mut })
    }
}

impl<M: Debug, T: ?Sized> Debug for Typed<M, T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.module.fmt(f)
    }
}

impl<M: Module + ModuleDisplay + Sync + 'static, T: ?Sized + 'static> DynModule<T> for Typed<M, T> {
    fn view(&self) -> &T {
        (self.view)(&self.module)
    }
    fn view_mut(&mut self) -> &mut T {
        (self.view_mut)(&mut self.module)
    }
    fn visit(&self, visitor: &mut dyn ErasedVisitor) {
        self.module.visit(&mut Erase(visitor));
    }
    fn map(self: Box<Self>, mapper: &mut dyn ErasedMapper) -> Box<dyn DynModule<T>> {
        self.change(|it| it.map(&mut Erase(mapper)))
    }
    fn collect_devices(&self, devices: Devices) -> Devices {
        self.module.collect_devices(devices)
    }
    fn fork(self: Box<Self>, device: &Device) -> Box<dyn DynModule<T>> {
        self.change(|it| it.fork(device))
    }
    fn to_device(self: Box<Self>, device: &Device) -> Box<dyn DynModule<T>> {
        self.change(|it| it.to_device(device))
    }
    fn train(self: Box<Self>) -> Box<dyn DynModule<T>> {
        self.change(Module::train)
    }
    fn valid(&self) -> Box<dyn DynModule<T>> {
        self.boxed(self.module.valid())
    }
    fn materialize(self: Box<Self>) -> Box<dyn DynModule<T>> {
        self.change(Module::materialize)
    }
    fn clone_dyn(&self) -> Box<dyn DynModule<T>> {
        self.boxed(self.module.clone())
    }
    fn content(&self, content: Content) -> Option<Content> {
        self.module.content(content)
    }
    fn num_params(&self) -> usize {
        Module::num_params(&self.module)
    }
    fn as_any(&self) -> &dyn Any {
        &self.module
    }
    fn as_any_mut(&mut self) -> &mut dyn Any {
        &mut self.module
    }
    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        Box::new(self.module)
    }
}

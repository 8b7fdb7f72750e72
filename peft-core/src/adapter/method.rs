//! What a method implements: [`Adapter`], and what an adapter can do beyond that.

use burn::module::Module;
use burn::tensor::{Int, Tensor};

use crate::adapter::any::AnyAdapter;
use crate::adapter::below::{EmbeddingBelow, LinearBelow};
use crate::adapter::prompt::{GatedPrompt, Prompt};
use crate::spec::{KEY_PREFIX, ParamSpec};

/// One adapter on one parameter: the trait that a method implements.
///
/// Field names are the keys of `adapter_model.safetensors` and tensors have the file's shapes, so a method gets its
/// files without writing any code for them: a field `lora_A: Factor` with a field `weight` is stored as
/// `<module>.lora_A.weight`. Fields that are bare tensors are constants: moved, but neither trained nor saved.
///
/// Draw random numbers in a forward only through [`nn::Dropout`](crate::nn::Dropout) or
/// [`ops::random`](crate::ops::random). What is drawn otherwise is drawn anew when gradient checkpointing computes a layer
/// again, so that gradients are wrong; and a generator of your own is not where it was when a run is resumed.
///
/// The [strength](AnyAdapter::strength) of an adapter is no concern of its method: the library interpolates between what
/// there was without the adapter and what the methods below make of it.
pub trait Adapter: Module + Sync + 'static {
    /// What the parameter becomes.
    ///
    /// `weight` is what earlier active adapters have made of it, `base` the frozen parameter itself, in single
    /// precision; both lie as [`ParamSpec::kind`] says. With one active adapter they are the same tensor.
    fn weight<const D: usize>(&self, weight: Tensor<D>, base: &Tensor<D>, param: &ParamSpec) -> Tensor<D>;

    /// What the layer `y = x W + b` computes, `[rows, in]` to `[rows, out]`.
    ///
    /// The default goes through the dense [`weight`](Adapter::weight). A method with a cheaper form calls
    /// `below.forward(input)` and adds to it. That output includes the bias, with what adapters below do to it; what
    /// this adapter does to the bias ([`as_bias`](Adapter::as_bias)) is applied by this method itself. It must agree with
    /// the dense form. `below.layout()` says how `below.frozen()`, `below.base()` and `below.weight()` lie: `[out, in]` or
    /// `[in, out]`.
    fn linear(&self, input: Tensor<2>, below: &LinearBelow<'_>) -> Tensor<2> {
        let weight = self.weight(below.weight(), below.base(), below.param());
        below.apply(input, weight, below.bias().map(|it| self.as_bias().map_or(it.clone(), |own| own.bias(it))))
    }

    /// What looking up rows gives, `[batch, seq]` to `[batch, seq, d_model]`.
    fn embedding(&self, ids: Tensor<2, Int>, below: &EmbeddingBelow<'_>) -> Tensor<3> {
        let weight = self.weight(below.weight(), below.base(), below.param());
        below.look_up(ids, weight)
    }

    /// A term that training adds to the loss, `[1]`. None for most methods.
    fn loss(&self) -> Option<Tensor<1>> {
        None
    }

    /// What becomes of a parameter: trained, as most are, or kept as it is. `field` is its path inside the adapter:
    /// `lora_A.weight`.
    fn role(&self, field: &str) -> ParamRole {
        let _ = field;
        ParamRole::Trained
    }

    /// Whether values that came from a file make sense on this parameter, or what is wrong with them.
    fn check(&self, param: &ParamSpec) -> Result<(), String> {
        let _ = param;
        Ok(())
    }

    /// Why the adapter cannot be folded into weights, if it cannot.
    fn unmergeable(&self) -> Option<&'static str> {
        None
    }

    /// The tokens that the adapter waits for, if it acts only at and behind the last occurrence of a sequence in a row. Its
    /// [`linear`](Adapter::linear) multiplies by [`forward::behind`](crate::forward::behind) what it adds.
    fn invocation(&self) -> Option<&[i64]> {
        None
    }

    /// What comes before [`file_key`](Adapter::file_key) in the adapter file.
    fn key_prefix(&self) -> &'static str {
        KEY_PREFIX
    }

    /// Key of a parameter in the adapter file, without the [`key_prefix`](Adapter::key_prefix). `field` is its path inside
    /// the adapter: `lora_A.weight`.
    fn file_key(&self, param: &ParamSpec, field: &str) -> String {
        crate::spec::join(&param.module, field)
    }

    /// The adapter as one that changes the layer's bias too. Most leave it alone.
    fn as_bias(&self) -> Option<&dyn BiasAdapter> {
        None
    }

    /// The adapter as one of an embedding matrix whose rows are tokens: one that moves a tied head, or replaces rows.
    fn as_table(&self) -> Option<&dyn TableAdapter> {
        None
    }

    /// The adapter as a prompt before the input, for one that is attached to the embedding matrix of a model.
    fn as_prompt(&self) -> Option<&dyn PromptAdapter> {
        None
    }

    /// The adapter as a gated prompt beside the keys and values of an attention, attached to its output projection.
    fn as_gated(&self) -> Option<&dyn GatedAdapter> {
        None
    }
}

/// What an [`Adapter`] can do to the bias of its layer.
pub trait BiasAdapter {
    /// What the bias becomes, `[out]`.
    fn bias(&self, bias: Tensor<1>) -> Tensor<1>;

    /// Whether a layer without a bias cannot be merged, since the adapter would give it one. A mere scaling does not.
    fn needs_bias(&self) -> bool {
        true
    }
}

/// What an [`Adapter`] can do to an embedding matrix beyond changing its numbers.
pub trait TableAdapter {
    /// Whether a head that is tied to the matrix goes through the adapter too.
    fn moves_tied_head(&self) -> bool {
        false
    }

    /// Whether the adapter has a matrix of its own in place of the whole table.
    fn replaces_table(&self) -> bool {
        false
    }

    /// Rows in whose place this adapter puts values of its own: another that does it to the same rows would hide them, so
    /// that both cannot act at once.
    fn replaced_rows(&self) -> Vec<usize> {
        Vec::new()
    }
}

/// An [`Adapter`] that is a prompt before the input of a model.
pub trait PromptAdapter {
    /// What stands before the input.
    ///
    /// `tasks` numbers the task of every row, `[batch]`, for prompts that differ between tasks.
    fn prompt(&self, tasks: Option<&Tensor<1, Int>>) -> Prompt;

    /// Number of virtual tokens before the input: what [`Prompt::tokens_len`] would be.
    fn virtual_tokens(&self) -> usize {
        0
    }

    /// Between how many tasks [`prompt`](PromptAdapter::prompt) tells: above 1 it must know the task of every row.
    fn tasks(&self) -> usize {
        1
    }

    /// What the adapter file holds in place of this adapter, if it trains more than it computes with: the encoder of a
    /// prompt is saved as the prompt. Its own tensors go into [`ENCODER_FILE`](crate::ENCODER_FILE).
    fn export_form(&self) -> Option<AnyAdapter> {
        None
    }
}

/// An [`Adapter`] that attention looks at beside its own tokens.
pub trait GatedAdapter {
    /// The tokens and the gate.
    fn gated(&self) -> GatedPrompt;
}

/// What becomes of a parameter of an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParamRole {
    /// Trained and saved.
    Trained,
    /// Saved, not trained.
    Constant,
    /// Not trained, and one tensor for all layers.
    Shared {
        /// The whole key under which the file has it.
        key: String,
        /// Whether the file has it for every layer too. Such copies need not be there when it is read.
        copies: bool,
    },
    /// Neither trained nor saved, for it follows from the configuration.
    Derived,
}

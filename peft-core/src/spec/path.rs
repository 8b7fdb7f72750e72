//! Paths of modules and parameters, spelled as checkpoints spell them.

/// Whether `path` lies inside `module`.
pub(crate) fn is_below(path: &str, module: &str) -> bool {
    path.strip_prefix(module).is_some_and(|rest| rest.starts_with('.'))
}

pub(crate) fn join(module: &str, param: &str) -> String {
    if module.is_empty() { param.to_owned() } else { format!("{module}.{param}") }
}

/// `name` itself, or anything that ends in `.name`.
pub fn is_suffix(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|head| head.is_empty() || head.ends_with('.'))
}

/// What a layer is called among its neighbours: the end of its path, and more of it if that is a number, as in `to_out.0`.
pub(crate) fn short_name(path: &str) -> &str {
    let is_number = |name: &str| name.bytes().all(|it| it.is_ascii_digit());
    let name = path.rsplit_once('.').map_or(path, |(_, name)| name);
    match path.strip_suffix(name).and_then(|head| head.strip_suffix('.')) {
        Some(head) if is_number(name) => &path[head.rfind('.').map_or(0, |it| it + 1)..],
        _ => name,
    }
}

/// A path and all that it lies in, inside out.
pub(crate) fn enclosing(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |it| it.rsplit_once('.').map(|(head, _)| head))
}

/// Whether some prefix of `path`, cut at a dot, is `name` or ends in `.name`.
pub fn contains_module(path: &str, name: &str) -> bool {
    enclosing(path).any(|it| is_suffix(it, name))
}

/// The path that a visitor or mapper is at, spelled as checkpoints spell it.
///
/// A field whose checkpoint name is a Rust keyword carries a trailing underscore (`self_`), which is dropped here. The
/// variant of an enum leaves no trace, so that a choice between models does not change their keys. Nor does the field
/// inside a [`Buffer`](crate::nn::Buffer) or [`Counter`](crate::nn::Counter).
#[derive(Debug, Clone, Default)]
pub struct PathStack {
    segments: Vec<Option<String>>,
    containers: Vec<String>,
    inside_adapters: usize,
}

impl PathStack {
    /// To be called from `enter_module`.
    pub fn enter(&mut self, name: &str, container: &str) {
        self.inside_adapters += usize::from(container == ADAPTERS_CONTAINER);
        let shown = !container.starts_with("Enum:") && !BUFFER_CONTAINERS.contains(&container);
        self.segments.push(shown.then(|| name.strip_suffix('_').unwrap_or(name).to_owned()));
        self.containers.push(container.to_owned());
    }

    /// To be called from `exit_module`.
    pub fn exit(&mut self, container: &str) {
        self.inside_adapters -= usize::from(container == ADAPTERS_CONTAINER);
        self.segments.pop();
        self.containers.pop();
    }

    /// The path in dots.
    pub fn path(&self) -> String {
        self.segments.iter().flatten().map(String::as_str).collect::<Vec<_>>().join(".")
    }

    /// Module path and parameter name.
    pub fn split(&self) -> (String, String) {
        let path = self.path();
        match path.rsplit_once('.') {
            Some((module, param)) => (module.to_owned(), param.to_owned()),
            None => (String::new(), path),
        }
    }

    /// Whether the walk is inside an adapter set rather than in the model itself.
    pub fn in_adapters(&self) -> bool {
        self.inside_adapters > 0
    }

    /// Name of the struct that declares the current field: `Projection` for its `weight`.
    pub fn owner(&self) -> &str {
        self.containers.last().and_then(|it| it.strip_prefix("Struct:")).unwrap_or("")
    }
}

/// Burn's name for what sits in a parameter's slot.
const ADAPTERS_CONTAINER: &str = "Reparameterization";

/// Burn's names for [`Buffer`](crate::nn::Buffer) and [`Counter`](crate::nn::Counter).
const BUFFER_CONTAINERS: [&str; 2] = ["Struct:Buffer", "Struct:Counter"];

//! Which file a path leads to.

use std::collections::BTreeSet;

use super::sources::{FileId, Module, ModuleId, Sources};

/// One file names something that another one defines.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Edge {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) line: usize,
    /// The path as it is written, without braces.
    pub(super) name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Module(ModuleId),
    Item(FileId),
}

/// Imports that are being followed; two modules may re-export each other.
type Following = BTreeSet<(ModuleId, String)>;

impl Sources {
    /// Every use of one file by another. The root is left out: it may know all files, and all may know it.
    ///
    /// A `use` of a module is no edge, what is then named through it is. So is `use a::*`, by all that it may bring.
    pub(super) fn edges(&self) -> Vec<Edge> {
        let mut edges = BTreeSet::new();
        let mut add = |from: ModuleId, to: FileId, line: usize, path: &[String]| {
            let from = self.modules[from].file;
            if from != to && from != 0 && to != 0 {
                let (from, to) = (self.files[from].clone(), self.files[to].clone());
                edges.insert(Edge { from, to, line, name: path.join("::") });
            }
        };
        for reference in &self.references {
            for to in items(self.walk(reference.module, &reference.path, &mut Following::new()).as_deref()) {
                add(reference.module, to, reference.line, &reference.path);
            }
        }
        for (id, module) in self.modules.iter().enumerate() {
            for import in module.imports.iter().filter(|it| !(it.reexport && self.is_of_child(id, &it.path))) {
                let targets = self.walk(id, &import.path, &mut Following::new());
                for to in items(targets.as_deref()) {
                    add(id, to, import.line, &import.path);
                }
                for target in targets.into_iter().flatten().filter(|_| import.name.is_none()) {
                    let Target::Module(from) = target else { continue };
                    // A glob of a module in the same file brings what this file uses anyway.
                    if self.modules[from].file != module.file {
                        let mut files = BTreeSet::new();
                        self.bring(from, &mut BTreeSet::new(), &mut files);
                        let name = [&import.path[..], &["*".to_owned()]].concat();
                        files.into_iter().for_each(|to| add(id, to, import.line, &name));
                    }
                }
            }
        }
        edges.into_iter().collect()
    }

    /// Adds the files of what `use module::*` brings, and of what globs in the module bring in turn.
    fn bring(&self, id: ModuleId, seen: &mut BTreeSet<ModuleId>, files: &mut BTreeSet<FileId>) {
        if !seen.insert(id) {
            return;
        }
        let module = &self.modules[id];
        files.extend(module.items.values());
        for import in module.imports.iter().filter(|it| it.reexport) {
            for target in self.walk(id, &import.path, &mut Following::new()).unwrap_or_default() {
                match target {
                    Target::Item(file) => files.extend([file]),
                    Target::Module(inner) if import.name.is_none() => self.bring(inner, seen, files),
                    Target::Module(_) => {}
                }
            }
        }
    }

    /// Whether a path leads through a module below this one, in another file: `pub use` of such a path only says where
    /// the names of children are found.
    fn is_of_child(&self, id: ModuleId, path: &[String]) -> bool {
        let (start, rest) = self.start(id, path).unwrap_or((id, path));
        let mut deepest = start;
        for name in rest {
            match self.modules[deepest].children.get(name) {
                Some(&child) => deepest = child,
                None => break,
            }
        }
        let mut above = Some(deepest);
        while above.is_some_and(|it| it != id) {
            above = above.and_then(|it| self.modules[it].parent);
        }
        above.is_some() && self.modules[deepest].file != self.modules[id].file
    }

    /// The module that `crate`, `self` and `super` at the head of a path mean, and the rest of the path.
    fn start<'a>(&self, id: ModuleId, path: &'a [String]) -> Option<(ModuleId, &'a [String])> {
        let mut start = None;
        let mut rest = path;
        while let Some((first, tail)) = rest.split_first() {
            start = match (first.as_str(), start) {
                ("crate", None) => Some(0),
                ("self", None) => Some(id),
                ("super", _) => self.modules[start.unwrap_or(id)].parent,
                _ => break,
            };
            rest = tail;
        }
        start.map(|it| (it, rest))
    }

    /// What a path may mean: a module and a function may have one name. Nothing if it is not of this crate.
    fn walk(&self, id: ModuleId, path: &[String], following: &mut Following) -> Option<Vec<Target>> {
        let start = self.start(id, path);
        let (mut module, mut rest) = start.unwrap_or((id, path));
        while let Some((name, tail)) = rest.split_first() {
            let found = match self.lookup(module, name, following) {
                Some(found) => found,
                // The first name of another crate, or a prelude's.
                None if start.is_none() && rest.len() == path.len() => return None,
                // A macro has made it there: names that a macro makes are not seen.
                None => vec![Target::Item(self.modules[module].file)],
            };
            if tail.is_empty() {
                return Some(found);
            }
            match found.iter().find_map(|it| if let Target::Module(it) = it { Some(*it) } else { None }) {
                Some(inner) => module = inner,
                // The rest is a variant or an associated item.
                None => return Some(found),
            }
            rest = tail;
        }
        Some(vec![Target::Module(module)])
    }

    /// What a name means in a module: nothing if it has no such name, and an empty list if the name is another crate's.
    fn lookup(&self, id: ModuleId, name: &str, following: &mut Following) -> Option<Vec<Target>> {
        let module: &Module = &self.modules[id];
        let child = module.children.get(name).map(|it| Target::Module(*it));
        let item = module.items.get(name).map(|it| Target::Item(*it));
        let mut known = child.is_some() || item.is_some();
        let mut found: Vec<Target> = child.into_iter().chain(item).collect();
        if following.insert((id, name.to_owned())) {
            for import in module.imports.iter().filter(|it| it.name.as_deref() == Some(name)) {
                known = true;
                found.extend(self.walk(id, &import.path, following).unwrap_or_default());
            }
            // Globs give way to whatever is named.
            for import in module.imports.iter().filter(|it| !known && it.name.is_none()) {
                for target in self.walk(id, &import.path, following).unwrap_or_default() {
                    if let Target::Module(inner) = target {
                        found.extend(self.lookup(inner, name, following).unwrap_or_default());
                    }
                }
            }
            following.remove(&(id, name.to_owned()));
        }
        (known || !found.is_empty()).then_some(found)
    }
}

fn items(targets: Option<&[Target]>) -> impl Iterator<Item = FileId> {
    targets.unwrap_or_default().iter().filter_map(|it| if let Target::Item(file) = it { Some(*file) } else { None })
}

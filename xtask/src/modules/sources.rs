//! What the files of a crate define, import and name.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{Ident, TokenStream};
use syn::ext::IdentExt;
use syn::visit::{self, Visit};
use syn::{Attribute, ImplItem, Item, Meta, Stmt, TraitItem, UseTree, Visibility};

use super::attributes::{self, path_attribute, test_only};
use super::tokens;

/// Gives the text of a file, or nothing where there is none.
pub(super) type Load<'a> = &'a dyn Fn(&str) -> Result<Option<String>, String>;

/// Indices into [`Sources::files`] and [`Sources::modules`].
pub(super) type FileId = usize;
pub(super) type ModuleId = usize;

/// A library or a program: the root file, and all files that are modules of it outside tests.
#[derive(Default)]
pub(super) struct Sources {
    /// Paths. The first is the root.
    pub(super) files: Vec<String>,
    /// The first is the root. Inline modules (`mod x { … }`) are modules of their own in the same file.
    pub(super) modules: Vec<Module>,
    pub(super) references: Vec<Reference>,
}

#[derive(Default)]
pub(super) struct Module {
    pub(super) parent: Option<ModuleId>,
    pub(super) file: FileId,
    pub(super) children: BTreeMap<String, ModuleId>,
    /// What is defined here, and in which file: a `#[macro_export]` is defined in one file and found at the root.
    pub(super) items: BTreeMap<String, FileId>,
    pub(super) imports: Vec<Import>,
    /// Where the files of its children lie.
    folder: String,
}

/// One name of a `use`, or one `*`.
pub(super) struct Import {
    /// The name that it has here, or nothing for `*`.
    pub(super) name: Option<String>,
    pub(super) path: Vec<String>,
    pub(super) line: usize,
    /// Whether others find it here: it has a `pub` of some kind.
    pub(super) reexport: bool,
}

/// A path somewhere in the code of a module.
pub(super) struct Reference {
    pub(super) module: ModuleId,
    pub(super) path: Vec<String>,
    pub(super) line: usize,
}

impl Sources {
    pub(super) fn read(root: &str, load: Load<'_>) -> Result<Self, String> {
        let folder = root.rsplit_once('/').map_or("", |it| it.0);
        let mut sources = Self { files: vec![root.to_owned()], ..Self::default() };
        sources.modules.push(Module { folder: folder.to_owned(), ..Module::default() });
        let text = load(root)?.ok_or_else(|| format!("{root} does not exist"))?;
        let mut reader = Reader { load, sources, module: 0, in_body: false, locals: BTreeSet::new(), failed: None };
        reader.read(&text);
        match reader.failed {
            Some(reason) => Err(reason),
            None => Ok(reader.sources),
        }
    }
}

/// Walks through the syntax of one module after the other.
struct Reader<'a> {
    load: Load<'a>,
    sources: Sources,
    module: ModuleId,
    in_body: bool,
    /// Names that the function in hand gives to values: they hide what the module imports.
    locals: BTreeSet<String>,
    failed: Option<String>,
}

impl Reader<'_> {
    fn here(&mut self) -> &mut Module {
        &mut self.sources.modules[self.module]
    }

    fn file(&self) -> &str {
        &self.sources.files[self.sources.modules[self.module].file]
    }

    fn read(&mut self, text: &str) {
        match syn::parse_file(text) {
            Ok(file) if test_only(&file.attrs) => {}
            Ok(file) => self.visit_file(&file),
            Err(error) => self.fail(format!("{}:{}: {error}", self.file(), error.span().start().line)),
        }
    }

    fn fail(&mut self, reason: String) {
        self.failed.get_or_insert(reason);
    }

    /// Goes into the child `name` of the current module, does the work there, and comes back.
    fn inside(&mut self, name: &str, module: Module, work: impl FnOnce(&mut Self)) {
        let (parent, child) = (self.module, self.sources.modules.len());
        self.here().children.insert(name.to_owned(), child);
        self.sources.modules.push(Module { parent: Some(parent), ..module });
        self.module = child;
        work(self);
        self.module = parent;
    }

    /// The file behind `mod name;`, as rustc looks for it.
    fn read_module(&mut self, item: &syn::ItemMod, name: &str) {
        let beside = |path: &str, name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
        let below = beside(&self.here().folder.clone(), name);
        let candidates = match path_attribute(&item.attrs) {
            Some(given) => {
                let folder = self.file().rsplit_once('/').map_or("", |it| it.0).to_owned();
                vec![(beside(&folder, &given), folder)]
            }
            None => vec![(format!("{below}.rs"), below.clone()), (format!("{below}/mod.rs"), below)],
        };
        let tried = candidates.iter().map(|it| it.0.as_str()).collect::<Vec<_>>().join(" nor ");
        for (path, folder) in candidates {
            match (self.load)(&path) {
                Ok(None) => {}
                Ok(Some(text)) => {
                    let file = self.sources.files.len();
                    self.sources.files.push(path);
                    self.inside(name, Module { file, folder, ..Module::default() }, |it| it.read(&text));
                    return;
                }
                Err(reason) => return self.fail(reason),
            }
        }
        let place = format!("{}:{}", self.file(), line(&item.ident));
        self.fail(format!("{place}: `mod {name};`, but there is no {tried}"));
    }

    fn import(&mut self, tree: &UseTree, prefix: &[String], reexport: bool) {
        let joined = |ident: &Ident| match text(ident).as_str() {
            // `use a::{self}` names `a`.
            "self" if !prefix.is_empty() => prefix.to_vec(),
            name => [prefix, &[name.to_owned()]].concat(),
        };
        let (name, path, line) = match tree {
            UseTree::Path(it) => return self.import(&it.tree, &joined(&it.ident), reexport),
            UseTree::Group(it) => return it.items.iter().for_each(|it| self.import(it, prefix, reexport)),
            UseTree::Name(it) => (joined(&it.ident).last().cloned(), joined(&it.ident), line(&it.ident)),
            UseTree::Rename(it) => (Some(text(&it.rename)), joined(&it.ident), line(&it.ident)),
            UseTree::Glob(it) => (None, prefix.to_vec(), it.star_token.span.start().line),
        };
        self.here().imports.push(Import { name, path, line, reexport });
    }

    fn refer(&mut self, path: Vec<String>, line: usize) {
        // A variable may have the name of an imported function; types and modules are not shadowed by variables.
        if path.len() == 1 && self.locals.contains(&path[0]) {
            return;
        }
        self.sources.references.push(Reference { module: self.module, path, line });
    }

    fn refer_to_tokens(&mut self, tokens: &TokenStream) {
        for (path, line) in tokens::paths(tokens) {
            self.refer(path, line);
        }
    }

    fn function(&mut self, bound: BTreeSet<String>, work: impl FnOnce(&mut Self)) {
        let outer = self.locals.clone();
        self.locals.extend(bound);
        work(self);
        self.locals = outer;
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes = attributes::of_item(item);
        if test_only(attributes) {
            return;
        }
        // What a function defines in its body cannot be named from outside.
        if let Some(name) = item_name(item).filter(|_| !self.in_body) {
            let file = self.here().file;
            self.here().items.insert(text(name), file);
            if attributes.iter().any(|it| it.path().is_ident("macro_export")) {
                self.sources.modules[0].items.insert(text(name), file);
            }
        }
        visit::visit_item(self, item);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let name = text(&item.ident);
        match &item.content {
            Some((_, items)) => {
                let module = self.here();
                let (file, folder) = (module.file, format!("{}/{name}", module.folder));
                self.inside(&name, Module { file, folder, ..Module::default() }, |it| {
                    items.iter().for_each(|item| it.visit_item(item));
                });
            }
            None => self.read_module(item, &name),
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        // `use ::name` is another crate.
        if item.leading_colon.is_none() {
            self.import(&item.tree, &[], !matches!(item.vis, Visibility::Inherited));
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if let (None, Some(first)) = (&path.leading_colon, path.segments.first()) {
            self.refer(path.segments.iter().map(|it| text(&it.ident)).collect(), line(&first.ident));
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, called: &'ast syn::Macro) {
        self.visit_path(&called.path);
        self.refer_to_tokens(&called.tokens);
    }

    /// The name of an attribute is never ours; what stands in its brackets may name a function.
    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if let Meta::List(list) = &attribute.meta {
            self.refer_to_tokens(&list.tokens);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        let mut bound = Bound::default();
        bound.visit_item_fn(item);
        self.function(bound.0, |it| visit::visit_item_fn(it, item));
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        let mut bound = Bound::default();
        bound.visit_impl_item_fn(item);
        self.function(bound.0, |it| visit::visit_impl_item_fn(it, item));
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        let mut bound = Bound::default();
        bound.visit_trait_item_fn(item);
        self.function(bound.0, |it| visit::visit_trait_item_fn(it, item));
    }

    fn visit_block(&mut self, block: &'ast syn::Block) {
        let outer = std::mem::replace(&mut self.in_body, true);
        visit::visit_block(self, block);
        self.in_body = outer;
    }

    // From here on: whatever else can stand behind `#[cfg(test)]`.

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        if !test_only(attributes::of_impl_item(item)) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_trait_item(&mut self, item: &'ast TraitItem) {
        if !test_only(attributes::of_trait_item(item)) {
            visit::visit_trait_item(self, item);
        }
    }

    fn visit_stmt(&mut self, statement: &'ast Stmt) {
        if !test_only(attributes::of_statement(statement)) {
            visit::visit_stmt(self, statement);
        }
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        if !test_only(&field.attrs) {
            visit::visit_field(self, field);
        }
    }

    fn visit_field_value(&mut self, field: &'ast syn::FieldValue) {
        if !test_only(&field.attrs) {
            visit::visit_field_value(self, field);
        }
    }

    fn visit_variant(&mut self, variant: &'ast syn::Variant) {
        if !test_only(&variant.attrs) {
            visit::visit_variant(self, variant);
        }
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        if !test_only(&arm.attrs) {
            visit::visit_arm(self, arm);
        }
    }
}

/// The names that patterns bind.
#[derive(Default)]
struct Bound(BTreeSet<String>);

impl<'ast> Visit<'ast> for Bound {
    fn visit_pat_ident(&mut self, pattern: &'ast syn::PatIdent) {
        // A pattern that starts with a capital is a constant or a variant.
        let name = text(&pattern.ident);
        if !tokens::is_capitalised(&name) {
            self.0.insert(name);
        }
        visit::visit_pat_ident(self, pattern);
    }
}

fn item_name(item: &Item) -> Option<&Ident> {
    match item {
        Item::Const(it) => Some(&it.ident),
        Item::Enum(it) => Some(&it.ident),
        Item::Fn(it) => Some(&it.sig.ident),
        Item::Macro(it) => it.ident.as_ref(),
        Item::Static(it) => Some(&it.ident),
        Item::Struct(it) => Some(&it.ident),
        Item::Trait(it) => Some(&it.ident),
        Item::TraitAlias(it) => Some(&it.ident),
        Item::Type(it) => Some(&it.ident),
        Item::Union(it) => Some(&it.ident),
        _ => None,
    }
}

/// A name as others write it: without `r#`.
fn text(ident: &Ident) -> String {
    ident.unraw().to_string()
}

fn line(ident: &Ident) -> usize {
    ident.span().start().line
}

//! Attributes, and what they say about where something is compiled.

use syn::{Attribute, Expr, ImplItem, Item, Meta, Stmt, TraitItem};

pub(super) fn of_item(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(syn::ItemConst { attrs, .. })
        | Item::Enum(syn::ItemEnum { attrs, .. })
        | Item::Fn(syn::ItemFn { attrs, .. })
        | Item::ForeignMod(syn::ItemForeignMod { attrs, .. })
        | Item::Impl(syn::ItemImpl { attrs, .. })
        | Item::Macro(syn::ItemMacro { attrs, .. })
        | Item::Mod(syn::ItemMod { attrs, .. })
        | Item::Static(syn::ItemStatic { attrs, .. })
        | Item::Struct(syn::ItemStruct { attrs, .. })
        | Item::Trait(syn::ItemTrait { attrs, .. })
        | Item::TraitAlias(syn::ItemTraitAlias { attrs, .. })
        | Item::Type(syn::ItemType { attrs, .. })
        | Item::Union(syn::ItemUnion { attrs, .. })
        | Item::Use(syn::ItemUse { attrs, .. }) => attrs,
        _ => &[],
    }
}

pub(super) fn of_impl_item(item: &ImplItem) -> &[Attribute] {
    match item {
        ImplItem::Const(syn::ImplItemConst { attrs, .. })
        | ImplItem::Fn(syn::ImplItemFn { attrs, .. })
        | ImplItem::Macro(syn::ImplItemMacro { attrs, .. })
        | ImplItem::Type(syn::ImplItemType { attrs, .. }) => attrs,
        _ => &[],
    }
}

pub(super) fn of_trait_item(item: &TraitItem) -> &[Attribute] {
    match item {
        TraitItem::Const(syn::TraitItemConst { attrs, .. })
        | TraitItem::Fn(syn::TraitItemFn { attrs, .. })
        | TraitItem::Macro(syn::TraitItemMacro { attrs, .. })
        | TraitItem::Type(syn::TraitItemType { attrs, .. }) => attrs,
        _ => &[],
    }
}

pub(super) fn of_statement(statement: &Stmt) -> &[Attribute] {
    match statement {
        Stmt::Local(syn::Local { attrs, .. })
        | Stmt::Macro(syn::StmtMacro { attrs, .. })
        | Stmt::Expr(Expr::Assign(syn::ExprAssign { attrs, .. }), _)
        | Stmt::Expr(Expr::Block(syn::ExprBlock { attrs, .. }), _)
        | Stmt::Expr(Expr::Call(syn::ExprCall { attrs, .. }), _)
        | Stmt::Expr(Expr::If(syn::ExprIf { attrs, .. }), _)
        | Stmt::Expr(Expr::MethodCall(syn::ExprMethodCall { attrs, .. }), _) => attrs,
        _ => &[],
    }
}

/// Whether something is there in tests only: `#[test]`, `#[cfg(test)]`, `#[cfg(all(test, …))]`.
pub(super) fn test_only(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|it| it.path().is_ident("test") || it.path().is_ident("cfg") && needs_test(&it.meta))
}

/// Whether a condition cannot hold outside tests. `cfg(…)` itself is a condition of one part.
fn needs_test(condition: &Meta) -> bool {
    let Meta::List(list) = condition else { return condition.path().is_ident("test") };
    let parts = syn::punctuated::Punctuated::<Meta, syn::Token![,]>::parse_terminated;
    let Ok(parts) = list.parse_args_with(parts) else { return false };
    match list.path.get_ident().map(ToString::to_string).unwrap_or_default().as_str() {
        "cfg" | "all" => parts.iter().any(needs_test),
        "any" => !parts.is_empty() && parts.iter().all(needs_test),
        _ => false,
    }
}

/// `#[path = "…"]`.
pub(super) fn path_attribute(attributes: &[Attribute]) -> Option<String> {
    let attribute = attributes.iter().find(|it| it.path().is_ident("path"))?;
    let Meta::NameValue(given) = &attribute.meta else { return None };
    let Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) = &given.value else { return None };
    Some(text.value())
}

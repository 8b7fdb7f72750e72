//! Paths in token streams: bodies of macros, and what macros are called with, have no syntax of their own.

use proc_macro2::{Delimiter, Ident, TokenStream, TokenTree};
use syn::ext::IdentExt;

/// The paths in a stream and their lines: `crate::a::B`, `$crate::a::{B, c::D}`, `a::b`, and of single names those that
/// may be an item. `$crate` comes as `crate`.
pub(super) fn paths(tokens: &TokenStream) -> Vec<(Vec<String>, usize)> {
    let tokens: Vec<TokenTree> = tokens.clone().into_iter().collect();
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at] {
            TokenTree::Group(group) => {
                found.extend(paths(&group.stream()));
                at += 1;
            }
            TokenTree::Ident(first) => {
                let mut ours = Vec::new();
                let end = follow(&tokens, at, &[], &mut ours);
                if may_start(&tokens[..at], first) {
                    let item = is_capitalised(&name(first)) || is_called(tokens.get(end));
                    found.extend(ours.into_iter().filter(|(path, _)| path.len() > 1 || item));
                }
                at = end;
            }
            _ => at += 1,
        }
    }
    found
}

pub(super) fn is_capitalised(name: &str) -> bool {
    name.starts_with(char::is_uppercase)
}

/// Reads the path that starts with the name at `at`, and says where it ends. Braces at its end make several of it.
fn follow(tokens: &[TokenTree], mut at: usize, prefix: &[String], found: &mut Vec<(Vec<String>, usize)>) -> usize {
    let mut path = prefix.to_vec();
    let line = tokens[at].span().start().line;
    while let Some(TokenTree::Ident(ident)) = tokens.get(at) {
        // `a::{self}` names `a`.
        if path.is_empty() || ident != "self" {
            path.push(name(ident));
        }
        at += 1;
        if !is_colons(tokens.get(at), tokens.get(at + 1)) {
            break;
        }
        at += 2;
        if let Some(TokenTree::Group(group)) = tokens.get(at).filter(|it| is_group(it, Delimiter::Brace)) {
            let inner: Vec<TokenTree> = group.stream().into_iter().collect();
            for part in inner.split(|it| is_punctuation(Some(it), ',')) {
                if let Some(TokenTree::Ident(_)) = part.first() {
                    follow(part, 0, &path, found);
                }
            }
            return at + 1;
        }
    }
    found.push((path, line));
    at
}

/// Whether a name starts a path of its own: it is no field, no lifetime, no `$variable`, and not behind `::`.
fn may_start(before: &[TokenTree], name: &Ident) -> bool {
    let last = before.last();
    let second = before.len().checked_sub(2).map(|it| &before[it]);
    let field = is_punctuation(last, '.') && !is_punctuation(second, '.');
    let variable = is_punctuation(last, '$') && name != "crate";
    !(field || variable || is_punctuation(last, '\'') || is_colons(second, last))
}

fn is_called(next: Option<&TokenTree>) -> bool {
    is_punctuation(next, '!') || next.is_some_and(|it| is_group(it, Delimiter::Parenthesis))
}

fn is_colons(first: Option<&TokenTree>, second: Option<&TokenTree>) -> bool {
    is_punctuation(first, ':') && is_punctuation(second, ':')
}

fn is_group(token: &TokenTree, delimiter: Delimiter) -> bool {
    matches!(token, TokenTree::Group(group) if group.delimiter() == delimiter)
}

fn is_punctuation(token: Option<&TokenTree>, character: char) -> bool {
    matches!(token, Some(TokenTree::Punct(it)) if it.as_char() == character)
}

fn name(ident: &Ident) -> String {
    ident.unraw().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        let tokens: TokenStream = text.parse().unwrap();
        paths(&tokens).into_iter().map(|(path, _)| path.join("::")).collect()
    }

    #[test]
    fn paths_are_found_wherever_they_stand() {
        assert_eq!(found("impl $crate::a::B for $name { &crate::c::d(x) }"), ["crate::a::B", "crate::c::d"]);
        assert_eq!(found("use $crate::{a::X, b::{self, Y as Z}};")[..3], ["crate::a::X", "crate::b", "crate::b::Y"]);
        assert_eq!(found("Vec::<super::T>::new()"), ["Vec", "super::T"]);
        assert_eq!(found("Self { a, ..super::base() }"), ["Self", "super::base"]);
    }

    #[test]
    fn names_that_are_no_item_are_left_out() {
        assert_eq!(found("x.field.call(1); $it::y; $name; ::std::fs::read; 'a; value + \"crate::a::B\""), [""; 0]);
        assert_eq!(found("run(1) + Type + each!(2)"), ["run", "Type", "each"]);
    }
}

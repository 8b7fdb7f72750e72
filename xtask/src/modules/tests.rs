//! Small crates in memory, and what is wrong in them.

use super::*;

const NO_RULES: Rules = Rules { package: "p", order: &[], cycles: &[] };

/// What is wrong in a crate of these files.
fn wrong_by(rules: &Rules, files: &[(&str, &str)]) -> Vec<String> {
    let load = |path: &str| {
        let found = files.iter().find(|it| path == format!("p/src/{}", it.0));
        Ok(found.map(|it| it.1.to_owned()))
    };
    check_crate(rules, &load).unwrap()
}

/// The uses that cycles consist of, without explanations.
fn cycles(files: &[(&str, &str)]) -> Vec<String> {
    let found = wrong_by(&NO_RULES, files).join("\n");
    found.lines().filter_map(|it| it.strip_prefix("    ")).map(str::to_owned).collect()
}

#[test]
fn a_clean_crate_passes() {
    let files = [
        ("lib.rs", "mod a; mod b; mod c; pub use a::A; pub const ROOT: u8 = 0; pub fn all() { c::run() }"),
        ("a.rs", "pub struct A; const NOTE: &str = \"crate::b::B\"; // crate::b::B\n/// [`crate::b::B`]\nfn f() {}"),
        ("b.rs", "use crate::{A, ROOT}; pub struct B(A);"),
        ("c/mod.rs", "mod d; pub use d::D; pub(crate) use self::d::E; pub fn run() { crate::b::B::new(); }"),
        ("c/d.rs", "pub struct D; pub struct E(crate::b::B);"),
    ];
    assert_eq!(wrong_by(&NO_RULES, &files), [""; 0]);
}

#[test]
fn a_cycle_in_nested_braces_names_its_lines() {
    let files = [
        ("lib.rs", "mod a;\nmod b;\nmod c;"),
        ("a.rs", "use std::fs;\nuse crate::{\n    b::{self, B},\n    c::C,\n};\npub struct A(B, C);"),
        ("b.rs", "pub struct B;\nfn f(it: crate::a::A) {}"),
        ("c.rs", "pub struct C;"),
    ];
    let expected =
        ["p/src/a.rs:3 uses b.rs (`crate::b::B`, and on another line)", "p/src/b.rs:2 uses a.rs (`crate::a::A`)"];
    assert_eq!(cycles(&files), expected);
}

#[test]
fn reexports_lead_to_where_a_name_comes_from() {
    let root = "mod a; mod b; mod files; pub use a::A; pub use files::*;";
    let files = [
        ("lib.rs", root),
        ("a.rs", "pub struct A(crate::Stored);"),
        ("b.rs", "pub use crate::files::Stored as Other;"),
        ("files/mod.rs", "mod checkpoint; mod plain; pub use checkpoint::*; pub use plain::Plain;"),
        ("files/checkpoint.rs", "pub use super::plain::Plain; pub struct Stored(crate::A);"),
        ("files/plain.rs", "pub struct Plain;"),
    ];
    let expected = [
        "p/src/a.rs:1 uses files/checkpoint.rs (`crate::Stored`)",
        "p/src/files/checkpoint.rs:1 uses a.rs (`crate::A`)",
    ];
    assert_eq!(cycles(&files), expected);
}

#[test]
fn a_reexport_of_what_is_no_child_counts() {
    let files = [
        ("lib.rs", "mod a; mod b; pub use a::B;"),
        ("a.rs", "pub struct A; pub use crate::b::B;"),
        ("b.rs", "pub struct B(crate::a::A);"),
    ];
    assert_eq!(cycles(&files).len(), 2);
}

#[test]
fn what_a_function_defines_is_its_own() {
    let files = [
        ("lib.rs", "mod a; mod b; mod c;"),
        ("a.rs", "pub struct A(crate::b::C);"),
        ("b.rs", "pub use crate::c::C; fn f(_: crate::a::A) { struct C; }"),
        ("c.rs", "pub struct C;"),
    ];
    assert_eq!(cycles(&files), [""; 0]);
}

#[test]
fn a_glob_counts_by_what_it_brings() {
    let files = [
        ("lib.rs", "mod a; mod b;"),
        ("a.rs", "use crate::b::*; pub struct A;"),
        ("b/mod.rs", "mod c; pub use c::*; pub use super::b::*;"),
        ("b/c.rs", "pub trait Shown {} impl Shown for crate::a::A {}"),
    ];
    let expected = ["p/src/a.rs:1 uses b/c.rs (`crate::b::*`)", "p/src/b/c.rs:1 uses a.rs (`crate::a::A`)"];
    assert_eq!(cycles(&files), expected);
    let of_own_file = [
        ("lib.rs", "mod a;"),
        ("a.rs", "mod b; pub use b::B; pub struct Own; mod inner { use super::*; }"),
        ("a/b.rs", "pub struct B(super::Own);"),
    ];
    assert_eq!(cycles(&of_own_file), [""; 0]);
}

#[test]
fn a_parent_and_a_child_may_form_a_cycle() {
    let files = [
        ("lib.rs", "mod a;"),
        ("a.rs", "mod b; mod c; pub use b::B; pub struct Own; fn f(it: B) {}"),
        ("a/b.rs", "pub struct B(super::Own);"),
        ("a/c.rs", "use super::Own; struct C(Own);"),
    ];
    let expected = ["p/src/a.rs:1 uses a/b.rs (`B`)", "p/src/a/b.rs:1 uses a.rs (`super::Own`)"];
    assert_eq!(cycles(&files), expected);
    let without_use = [files[0], ("a.rs", "mod b; mod c; pub use b::B; pub struct Own;"), files[2], files[3]];
    assert_eq!(cycles(&without_use), [""; 0]);
}

#[test]
fn modules_that_are_named_lead_on() {
    let files = [
        ("lib.rs", "mod a; mod b;"),
        ("a/mod.rs", "mod c; pub(crate) use c::run; pub(crate) mod d;"),
        ("a/c.rs", "use crate::{b::{self}}; pub(crate) fn run() { let run = 1; b::go(run) }"),
        ("a/d.rs", "mod inner { use super::super::*; fn f() { run() } }"),
        ("b.rs", "use super::a; use self::E::X; enum E { X } pub(crate) fn go(_: u8) { a::run() }"),
    ];
    let expected = ["p/src/a/c.rs:1 uses b.rs (`b::go`)", "p/src/b.rs:1 uses a/c.rs (`a::run`)"];
    assert_eq!(cycles(&files), expected);
}

#[test]
fn a_local_value_hides_an_imported_function() {
    let a = |body: &str| format!("mod b; pub use b::run; pub struct Own; fn f() {{ {body} }}");
    let count = |body: &str| {
        cycles(&[("lib.rs", "mod a;"), ("a.rs", &a(body)), ("a/b.rs", "pub fn run(_: super::Own) {}")]).len()
    };
    assert_eq!(count("run(Own)"), 2);
    assert_eq!(count("let run = |_| (); run(Own)"), 0);
    assert_eq!(count("let run = |_| (); fn g() {} run(Own)"), 0);
    assert_eq!(count("assert!(run(Own))"), 2);
}

#[test]
fn bodies_of_macros_count() {
    let files = [
        ("lib.rs", "mod a; mod b; mod c;"),
        ("a.rs", "macro_rules! each { ($it:expr) => { $crate::b::{B, go($it)} } }\npub(crate) use each;"),
        ("b.rs", "pub struct B; fn f() { crate::a::each!(1) }"),
        ("c.rs", "fn f() { vec![crate::b::B] }"),
    ];
    let expected = ["p/src/a.rs:1 uses b.rs (`crate::b::B`)", "p/src/b.rs:1 uses a.rs (`crate::a::each`)"];
    assert_eq!(cycles(&files), expected);
    let exported = [
        ("lib.rs", "mod a; mod b;"),
        ("a.rs", "#[macro_export] macro_rules! each { () => { $crate::b::B } }"),
        ("b.rs", "pub struct B; fn f() { crate::each!() }"),
    ];
    assert_eq!(cycles(&exported).len(), 2);
}

#[test]
fn tests_do_not_count() {
    let files = [
        ("lib.rs", "mod a; mod b; #[cfg(all(test, feature = \"x\"))] mod not_even_there;"),
        (
            "a.rs",
            "pub struct A; #[cfg(test)] mod tests { use crate::b::B; }\n#[cfg(test)] use crate::b::B as C;\n\
          impl A { #[cfg(test)] fn f() -> crate::b::B {} }\n#[test] fn g() { crate::b::B; }\n\
          fn h() { #[cfg(test)] crate::b::count(); }",
        ),
        ("b.rs", "pub struct B(crate::a::A);"),
    ];
    assert_eq!(cycles(&files), [""; 0]);
    let not_a_test = ("a.rs", "pub struct A; #[cfg(any(test, feature = \"x\"))] use crate::b::B;");
    assert_eq!(cycles(&[files[0], not_a_test, files[2]]).len(), 2);
}

#[test]
fn every_component_is_reported() {
    let files = [
        ("lib.rs", "mod a; mod b; mod c; mod d;"),
        ("a.rs", "use crate::b::B; pub struct A;"),
        ("b.rs", "use crate::a::A; use crate::c::C; pub struct B;"),
        ("c.rs", "use crate::d::D; pub struct C;"),
        ("d.rs", "use crate::c::C; pub struct D;"),
    ];
    let found = wrong_by(&NO_RULES, &files);
    assert_eq!(found.len(), 2);
    assert!(found[0].starts_with("p: 2 modules use each other in cycles: a.rs, b.rs."), "{}", found[0]);
    assert!(found[1].starts_with("p: 2 modules use each other in cycles: c.rs, d.rs."), "{}", found[1]);
}

#[test]
fn cycles_are_allowed_inside_a_folder_only() {
    let rules = Rules { cycles: &[("a", "one thing in two files")], ..NO_RULES };
    let inside = [
        ("lib.rs", "mod a; mod b;"),
        ("a/mod.rs", "mod c; pub use c::C; pub struct A(C);"),
        ("a/c.rs", "pub struct C(super::A);"),
        ("b.rs", "pub struct B(crate::a::A);"),
    ];
    assert_eq!(wrong_by(&NO_RULES, &inside).len(), 1);
    assert_eq!(wrong_by(&rules, &inside), [""; 0]);
    let leaving = [inside[0], inside[1], ("a/c.rs", "use super::A; pub struct C(crate::b::B);"), inside[3]];
    assert!(wrong_by(&rules, &leaving)[0].contains("a/c.rs, a/mod.rs, b.rs"));
    let needless = [inside[0], inside[1], ("a/c.rs", "pub struct C;"), inside[3]];
    assert!(wrong_by(&rules, &needless)[0].contains("no cycle is left inside `a`"));
}

#[test]
fn a_folder_inside_a_folder_may_have_a_place_of_its_own() {
    let order = |order| Rules { order, ..NO_RULES };
    let files = [
        ("lib.rs", "mod text;"),
        ("text/mod.rs", "pub mod decoder; pub mod encoder;"),
        ("text/decoder/mod.rs", "pub struct Decoder(crate::text::encoder::Encoder);"),
        ("text/encoder/mod.rs", "pub struct Encoder;"),
    ];
    assert_eq!(wrong_by(&order(&["text"]), &files), [""; 0]);
    assert_eq!(wrong_by(&order(&["text/encoder", "text/decoder", "text"]), &files), [""; 0]);
    let upward = wrong_by(&order(&["text/decoder", "text/encoder", "text"]), &files);
    assert_eq!(upward.len(), 1);
    assert!(upward[0].contains("`text/decoder` is below `text/encoder`"), "{}", upward[0]);
}

#[test]
fn folders_import_downwards_only() {
    let order = |order| Rules { order, ..NO_RULES };
    let files = [
        ("lib.rs", "mod error; mod nn; mod ops;"),
        ("error.rs", "pub struct Wrong;"),
        ("nn.rs", "pub struct Layer(crate::error::Wrong);"),
        ("ops/mod.rs", "mod linear; pub use linear::Linear;"),
        ("ops/linear.rs", "pub struct Linear;\nuse crate::nn::Layer;"),
    ];
    assert_eq!(wrong_by(&order(&["error", "nn", "ops"]), &files), [""; 0]);
    let upward = wrong_by(&order(&["error", "ops", "nn"]), &files);
    assert_eq!(upward.len(), 1);
    assert!(upward[0].starts_with("p/src/ops/linear.rs:2 imports `crate::nn::Layer` from nn.rs: `ops` is below `nn`"));
    let missing = wrong_by(&order(&["error", "nn"]), &files);
    assert!(missing[0].starts_with("p: `ops` has no place yet; put it into `order`"), "{}", missing[0]);
    let gone = wrong_by(&order(&["error", "gone", "nn", "ops"]), &files);
    assert!(gone[0].starts_with("p: there is no `gone`; take it out of `order`"), "{}", gone[0]);
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let fails = |files: &[(&str, &str)]| {
        let load = |path: &str| Ok(files.iter().find(|it| path == format!("p/src/{}", it.0)).map(|it| it.1.to_owned()));
        check_crate(&NO_RULES, &load).unwrap_err()
    };
    let lost = fails(&[("lib.rs", "\nmod a;")]);
    assert_eq!(lost, "p/src/lib.rs:2: `mod a;`, but there is no p/src/a.rs nor p/src/a/mod.rs");
    assert!(fails(&[("lib.rs", "mod a;"), ("a.rs", "\nfn {")]).starts_with("p/src/a.rs:2: "));
}

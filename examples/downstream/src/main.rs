//! The crate `peft` from outside: which methods it has.

fn main() {
    for name in peft::methods().names() {
        println!("{name}");
    }
}

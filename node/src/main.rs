//! The wherry command.
fn main() {}

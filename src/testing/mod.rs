//! Feature `testing`: what proves a backend. [`conformance!`](crate::conformance) runs one named test per check against
//! any [`Store`](crate::Store).

pub mod checks;
mod conformance;

pub use pollster::block_on;

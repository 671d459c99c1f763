//! Encoder.

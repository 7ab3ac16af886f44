//! The program as its users meet it: the demo, the README, the command line, restarts.

mod cli;
mod demo;
mod program;
mod walk;

// Command vole is a virtual machine monitor for Linux/KVM.
//
// This package is the command line: flags, the terminal, signals and exit codes. It decides nothing
// about the machine; that is package vmm, reached through the plain-data form in vmm/spec. One file
// holds one subcommand; the rest are the pieces that `run` puts together:
//
//   - stream.go: inherited descriptors as readers and writers whose waits can be ended
//   - terminal.go, guard.go, escape.go: the raw terminal, what restores it in every ending, Ctrl-a
//   - session.go, signals.go: one run of a machine, from its creation to the exit code
//   - files.go, stderr.go: the files that a run writes, and its own words
//   - report.go: what --report writes
//
// stdout belongs to the guest (and to the answer of commands such as version); everything vole says
// goes to stderr. The same binary is the built-in guest's /init: as process 1 of a guest it never
// gets as far as the command line.
package main

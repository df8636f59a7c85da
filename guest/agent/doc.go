// Package agent is PID 1 of a guest that runs commands for its host: it loads the
// kernel modules that it was given, mounts a root file system, connects to the host
// and does what package wire has frames for.
//
// The time until the first command runs is what users wait for, so things are done
// in the order in which others wait for them, and what waits for the host overlaps
// with what waits for the kernel: connections are made while file systems are
// mounted, a command's streams while its program is loaded.
//
// What of the configuration can't be done is a problem that the host is told in its
// Hello. Without its root file system the guest runs no command: each fails with the
// reason. Without the host it is of no use: the end of the control connection powers
// the machine off at once.
//
// A command's bytes go through pipes of the kernel, or a terminal of its own, and a
// copier for each. splice(2) would not make that cheaper: before Linux 6.5 it sends
// a packet of the socket device for every page of the pipe.
//
// One loop waits for all children, those that other processes have left to PID 1 as
// well, and hands each command its status; nothing else in the process may wait for
// any child.
package agent

// Package harness is a machine on which commands of this host run: any kernel, with
// the modules that it needs, over this host's root file system, with an agent as PID 1
// that [remote.Guest] speaks to.
//
// A [Machine] is made with New, started with Start, given commands by Guest, and taken
// down with Shutdown (what was written is on the host's disk) or Close. If the guest can
// serve no command any more, each of them fails with one [*Failure], which says why in
// its first line and has the console's last words.
//
// What the guest sees: the host's root directory by a virtio file system, read-only,
// with a file system in the guest's memory laid over it, so that everything can be
// written and is gone with the guest; but what is written below Root.Writable is
// written on the host. /proc, /sys, /dev and /run are the guest's own, but for Writable
// and Visible directories in /run and /dev/shm.
//
// The package does not parse flags and does not name devices but those it needs
// itself; others come in Options.Machine.Devices, and their drivers are loaded.
package harness

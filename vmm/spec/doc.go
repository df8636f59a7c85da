// Package spec is the plain-data form of a machine: what a JSON file or the flags of a command line
// can say, and how that becomes a [vmm.Config].
//
//	{"kernel": "vmlinuz", "initrd": "initrd.img", "append": "quiet", "memory": "1G", "cpus": 2, "timeout": "30s"}
//
// [Decode] is strict: a key it does not know, a second value behind the first and a value of the
// wrong kind are errors. Nothing here opens a file or creates anything; streams, loggers and caches
// are the caller's to add to the Config.
package spec

// Package guest is what runs as PID 1 inside a guest. By itself it is the program that vole
// packs into an initramfs of its own when it is given neither an initrd nor a
// disk. That program is the very binary that packs it, so main has to ask
// [IsInit] first and hand over to [Main].
//
// [Main] tells the host that user space is reached, mounts what PID 1 must,
// prints one screen about the machine as the guest sees it, and ends the guest
// in the way that the kernel command line asks for. It does little, because
// the time until the guest is down again is what users wait for: it starts no
// goroutine, opens few files and writes its report at once.
//
// The command line words, of which the last of a kind wins:
//
//	vole.action=poweroff   sync, then power off (the default)
//	vole.action=reboot     sync, then restart
//	vole.action=halt       sync, then stop all processors for good
//	vole.action=crash      make the kernel panic (sysrq c)
//	vole.action=hang       do nothing for ever, and reap
//	vole.action=triple     restart by a triple fault (see below)
//	vole.action=exit:N     write the byte N to the debug exit port 0xf4
//	vole.report=no         print nothing unless something fails
//
// Other words that begin with "vole." are named in the report. The kernel takes
// a word with a dot for a module's parameter and ignores it silently.
//
// A triple fault cannot be had from user space directly. "triple" writes that
// word to /sys/kernel/reboot/type (Linux 5.11 and later) and restarts; on an
// older kernel add reboot=t to the command line, with the same effect.
//
// [Archive] makes the initramfs.
//
// An initramfs of [AgentArchive] makes [Main] something else: package agent, which
// loads modules, mounts shares and runs the host's commands until it is told to end
// the guest. The words above mean nothing to it.
package guest

// Package vmm builds a small x86-64 machine on Linux KVM, boots a kernel in it
// and says how it ended.
//
//	m, err := vmm.New(vmm.Config{Kernel: "vmlinuz", Initrd: "initrd.img", ConsoleOut: os.Stdout})
//	if err != nil { ... }
//	defer m.Close()
//	if err := m.Start(); err != nil { ... }
//	exit, err := m.Wait(ctx)
//
// A [Machine] is a value of the process that made it: no daemon, no helper
// process, any number of them side by side. Its life is created, running,
// paused, stopped; the methods that move it may be called from any goroutine,
// any number of times and in any order. A wrong order is [ErrState], never a
// hang. [Machine.Close] leaves no goroutine, thread, descriptor or mapping
// behind.
//
// The package never changes signal dispositions, never touches the terminal
// and logs only to the logger that it was given. It stops a vCPU by SIGURG to
// the vCPU's own thread, which the Go runtime already handles: a program must
// not ignore that signal (os/signal.Ignore), or Close waits for ever.
//
// What Close can't end is a caller's own Read or Write: a ConsoleIn or
// ConsoleOut that blocks and has no deadlines keeps its goroutine until that
// call returns. The thread of a vCPU ends a moment after Close.
//
// The guest is hostile: whatever it does ends at worst this machine, with an
// [Exit] that says why.
package vmm

// Command embed is a program that does nothing but boot a kernel by package
// vmm: what it weighs is what vmm weighs in a program.
//
//	embed KERNEL INITRD CMDLINE
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/vole-vmm/vole/vmm"
)

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(kernel, initrd, cmdline string) error {
	m, err := vmm.New(vmm.Config{Kernel: kernel, Initrd: initrd, Cmdline: cmdline, Memory: 128 << 20, ConsoleOut: os.Stdout})
	if err != nil {
		return err
	}
	defer m.Close()
	if err := m.Start(); err != nil {
		return err
	}
	_, err = m.Wait(context.Background())
	return err
}

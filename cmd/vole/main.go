package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/vole-vmm/vole/boot"
	"github.com/vole-vmm/vole/guest"
)

func main() {
	// Process 1 of a guest, and the terminal guard, are this binary in another role; neither
	// should pay for the command line.
	if os.Getpid() == 1 && guest.IsInit() {
		os.Exit(guest.Main())
	}
	if isGuard(os.Args) {
		os.Exit(guardMain())
	}
	os.Exit(commandLine(os.Args[1:]))
}

// blame is the error's text, with the flag that is to blame where the packages below don't know it.
func blame(err error) string {
	if errors.Is(err, boot.ErrCmdline) {
		return "--append: " + err.Error()
	}
	return err.Error()
}

// commandLine runs one command and returns the code to exit with.
func commandLine(args []string) int {
	root := newRoot()
	root.SetArgs(args)
	cmd, err := root.ExecuteC()
	if err != nil {
		var exit *exitError
		if !errors.As(err, &exit) || exit.err != nil {
			stderr, done := newStderr(os.Stderr)
			fmt.Fprintf(stderr, "%s: %s\n", commandName(cmd), oneLine(blame(err)))
			done()
		}
	}
	return exitCode(err)
}

package main

import (
	"errors"
	"fmt"
	"os"

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

// commandLine runs one command and returns the code to exit with.
func commandLine(args []string) int {
	root := newRoot()
	root.SetArgs(args)
	cmd, err := root.ExecuteC()
	if err != nil {
		var exit *exitError
		if !errors.As(err, &exit) || exit.err != nil {
			stderr, done := newStderr(os.Stderr)
			fmt.Fprintf(stderr, "%s: %s\n", commandName(cmd), oneLine(err.Error()))
			done()
		}
	}
	return exitCode(err)
}

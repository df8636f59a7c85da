package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// newRoot builds the whole command line. Nothing runs and nothing is looked at before Execute.
func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "vole",
		Short: "Boot Linux kernels in virtual machines",
		Long: `vole boots an unmodified Linux kernel in a small virtual machine on KVM, shows its
console, and ends with an exit code that says how the guest ended.

  vole run                       boot this machine's own kernel to a one-screen report
  vole run -k vmlinuz -i initrd  boot that kernel with that initial RAM disk
  vole exec -- make test         run a command on another kernel, over this machine's files
  vole doctor                    say what this host can do, and how to fix what it can't`,
		Args:          noArguments,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors: true,
		SilenceUsage:  true,
		CompletionOptions: cobra.CompletionOptions{
			DisableDefaultCmd: true,
		},
		DisableAutoGenTag: true,
	}
	root.SetFlagErrorFunc(flagError)
	commands := []*cobra.Command{newRun(), newExec(), newKernel(), newDoctor(), newVersion(), newCompletion()}
	root.AddCommand(commands...)
	root.SetHelpCommand(newHelp())
	return root
}

// commandName is how an error on stderr begins: "vole: run".
func commandName(cmd *cobra.Command) string {
	if cmd == nil {
		return "vole"
	}
	return strings.ReplaceAll(cmd.CommandPath(), " ", ": ")
}

// flagError turns pflag's errors into one that begins with the flag.
func flagError(_ *cobra.Command, err error) error {
	var value *pflag.InvalidValueError
	var missing *pflag.ValueRequiredError
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return err
	case errors.As(err, &value):
		return &usageError{fmt.Errorf("--%s: %w", value.GetFlag().Name, errors.Unwrap(value))}
	case errors.As(err, &missing):
		return &usageError{fmt.Errorf("--%s: a value is missing", missing.GetFlag().Name)}
	}
	return &usageError{err}
}

// noArguments refuses anything that is not a flag; at the root that is an unknown command.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if !cmd.HasParent() {
		return &usageError{fmt.Errorf("unknown command %q: `vole help` lists them", args[0])}
	}
	if cmd.HasSubCommands() {
		return &usageError{fmt.Errorf("unknown command %q: `%s --help` lists them", args[0], cmd.CommandPath())}
	}
	return &usageError{fmt.Errorf("unexpected argument %q", args[0])}
}

package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/vole-vmm/vole/boot/kernel"
)

func newKernel() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kernel",
		Short: "Show the kernels that this machine has",
		Args:  noArguments,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newKernelLs(), newKernelPath())
	return cmd
}

// listedKernel is a kernel as `vole kernel ls --json` tells it.
type listedKernel struct {
	Path    string `json:"path"`
	Version string `json:"version,omitempty"`
	Source  string `json:"source"`
	Running bool   `json:"running"`
	Default bool   `json:"default"` // what `vole run` boots without --kernel
	Problem string `json:"problem,omitempty"`
}

func listKernels() []listedKernel {
	chosen, err := kernel.Default()
	list := []listedKernel{}
	for _, k := range kernel.Find() {
		l := listedKernel{Path: k.Path, Version: k.Version, Source: string(k.Source), Running: k.Running}
		l.Default = err == nil && k.Path == chosen.Path
		if k.Err != nil {
			l.Problem = k.Err.Error()
		}
		list = append(list, l)
	}
	return list
}

func newKernelLs() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the kernels, newest first",
		Long: `List the kernels that this machine has, newest first. The one marked with * is what
"vole run" boots without --kernel.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out, list := cmd.OutOrStdout(), listKernels()
			if asJSON {
				return writeJSON(out, list)
			}
			if len(list) == 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), "vole: kernel: ls: no kernel found on this machine")
				return nil
			}
			t := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
			for _, k := range list {
				mark, note := " ", k.Source
				if k.Default {
					mark = "*"
				}
				if k.Running {
					note += ", running"
				}
				if k.Problem != "" {
					note += ": " + oneLine(k.Problem)
				}
				fmt.Fprintf(t, "%s %s\t%s\t%s\n", mark, oneLine(k.Version), oneLine(k.Path), note)
			}
			return t.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newKernelPath() *cobra.Command {
	return &cobra.Command{
		Use:   "path [VERSION]",
		Short: "Print the path of a kernel",
		Long: `Print the path of the kernel that "vole run" boots without --kernel, or of the one of
that version, as in: vole run -k "$(vole kernel path 6.1.0-50-amd64)"`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return &usageError{fmt.Errorf("unexpected argument %q", args[1])}
			}
			return nil
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			var versions []string
			for _, k := range kernel.Find() {
				if len(args) == 0 && k.Err == nil {
					versions = append(versions, k.Version)
				}
			}
			return versions, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := kernelPath(args)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), path)
			return err
		},
	}
}

func kernelPath(args []string) (string, error) {
	if len(args) == 0 {
		k, err := kernel.Default()
		return k.Path, err
	}
	var problem error
	for _, k := range kernel.Find() {
		switch {
		case k.Version != args[0]:
		case k.Err == nil:
			return k.Path, nil
		default:
			problem = fmt.Errorf("%s: %w", k.Path, k.Err)
		}
	}
	if problem != nil {
		return "", problem
	}
	return "", fmt.Errorf("no kernel %q on this machine: `vole kernel ls` lists them", args[0])
}

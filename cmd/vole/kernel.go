package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/vole-vmm/vole/boot/kernel"
	"github.com/vole-vmm/vole/boot/kernel/pull"
)

func newKernel() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kernel",
		Short: "Show the kernels that this machine has, and fetch others",
		Args:  noArguments,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newKernelLs(), newKernelPull(), newKernelPath(), newKernelRm())
	return cmd
}

// listedKernel is a kernel as `vole kernel ls --json` tells it.
type listedKernel struct {
	Path    string `json:"path"`
	Version string `json:"version,omitempty"`
	Source  string `json:"source"`
	// Modules is the directory of its modules.
	Modules string `json:"modules,omitempty"`
	Running bool   `json:"running"`
	Default bool   `json:"default"` // what `vole run` boots without --kernel
	Problem string `json:"problem,omitempty"`
	// Pulled is what is known of it if it was pulled: Name is that of its directory.
	Name   string       `json:"name,omitempty"`
	Pulled *pull.Record `json:"pulled,omitempty"`
}

func listKernels() []listedKernel {
	chosen, err := kernel.Default()
	list := []listedKernel{}
	records := pulledRecords()
	for _, k := range kernel.Find() {
		l := listedKernel{Path: k.Path, Version: k.Version, Source: string(k.Source), Modules: k.Modules, Running: k.Running}
		l.Default = err == nil && k.Path == chosen.Path
		if k.Err != nil {
			l.Problem = k.Err.Error()
		}
		if r, ok := records[k.Path]; ok {
			l.Name, l.Pulled = r.Name, &r
		}
		list = append(list, l)
	}
	return list
}

// pulledRecords are what is known of the pulled kernels, by their images. Where nothing can be read
// there is nothing known.
func pulledRecords() map[string]pull.Record {
	records := map[string]pull.Record{}
	dir, err := kernel.PulledDir()
	if err != nil {
		return records
	}
	list, _ := pull.Records(dir)
	for _, r := range list {
		records[pulledImage(dir, r.Name)] = r
	}
	return records
}

// pulledImage is the image of a pulled kernel.
func pulledImage(dir, name string) string { return filepath.Join(dir, name, "vmlinuz") }

// note says where a kernel is from.
func (k listedKernel) note() string {
	note := k.Source
	if k.Pulled != nil {
		note += " from " + k.Pulled.Source
	}
	if k.Running {
		note += ", running"
	}
	if k.Problem != "" {
		note += ": " + k.Problem
	}
	return oneLine(note)
}

func newKernelLs() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the kernels, newest first",
		Long: `List the kernels that this machine has, newest first: version, whether its modules are here too,
file, and where it is from. The one marked with * is what "vole run" boots without --kernel.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out, list := cmd.OutOrStdout(), listKernels()
			if asJSON {
				return writeJSON(out, list)
			}
			if len(list) == 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), "vole: kernel: ls: no kernel found on this machine: `vole kernel pull` fetches one")
				return nil
			}
			t := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
			for _, k := range list {
				mark, modules := " ", "no modules"
				if k.Default {
					mark = "*"
				}
				if k.Modules != "" {
					modules = "modules"
				}
				fmt.Fprintf(t, "%s %s\t%s\t%s\t%s\n", mark, oneLine(k.Version), modules, oneLine(k.Path), k.note())
			}
			return t.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newKernelPath() *cobra.Command {
	return &cobra.Command{
		Use:   "path [NAME]",
		Short: "Print the path of a kernel",
		Long: `Print the path of a kernel: of the one that "vole run" boots without --kernel, or of the newest one
that NAME means. NAME is a version, the beginning of one, or what it was pulled by.`,
		Example: `  vole run -k "$(vole kernel path 6.1.0-50-amd64)"
  vole run -k "$(vole kernel path 6.12)"
  vole run -k "$(vole kernel path ghcr.io/cilium/ci-kernels:6.6)"`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return &usageError{fmt.Errorf("unexpected argument %q", args[1])}
			}
			return nil
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			var names []string
			for _, k := range listKernels() {
				if k.Problem == "" {
					names = append(names, k.Version)
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
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
	for _, k := range namedKernels(listKernels(), args[0]) {
		if k.Problem == "" {
			return k.Path, nil
		}
		if problem == nil {
			problem = fmt.Errorf("%s: %s", k.Path, k.Problem)
		}
	}
	if problem != nil {
		return "", problem
	}
	return "", &usageError{fmt.Errorf("no kernel %q on this machine: `vole kernel ls` lists them, `vole kernel pull` fetches others", args[0])}
}

// namedKernels are those that a user may mean by name, in the list's order: those of that version or
// that directory, else those that were pulled by it, else those whose version begins so.
func namedKernels(list []listedKernel, name string) []listedKernel {
	if found := exactKernels(list, name); len(found) > 0 {
		return found
	}
	return filterKernels(list, func(k listedKernel) bool {
		rest, ok := strings.CutPrefix(k.Version, name)
		return ok && name != "" && (rest[0] < '0' || rest[0] > '9')
	})
}

// exactKernels are namedKernels without those whose version only begins so.
func exactKernels(list []listedKernel, name string) []listedKernel {
	found := filterKernels(list, func(k listedKernel) bool { return k.Version == name || k.Name != "" && k.Name == name })
	if s, err := pull.Parse(name); err == nil && len(found) == 0 {
		found = filterKernels(list, func(k listedKernel) bool { return k.Pulled != nil && k.Pulled.Source == s[0].String() })
	}
	return found
}

func filterKernels(list []listedKernel, keep func(listedKernel) bool) []listedKernel {
	var found []listedKernel
	for _, k := range list {
		if keep(k) {
			found = append(found, k)
		}
	}
	return found
}

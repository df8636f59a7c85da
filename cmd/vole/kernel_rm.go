package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/vole-vmm/vole/boot/initramfs"
	"github.com/vole-vmm/vole/boot/kernel"
	"github.com/vole-vmm/vole/boot/kernel/pull"
	"github.com/vole-vmm/vole/vmm/harness"
)

func newKernelRm() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "rm NAME... | --all",
		Short: "Remove kernels that were pulled",
		Long: `Remove kernels that were pulled, with their modules and what the cache has of them. NAME is a
version, or what it was pulled by; when that is several kernels, all of them go. Nothing else on this
machine is touched: kernels in /boot and /lib/modules can't be removed so.

--all removes every pulled kernel, what interrupted pulls have left, and the caches of unpacked
kernels and modules.`,
		Example: `  vole kernel rm 6.12.9-cloud-amd64
  vole kernel rm ghcr.io/cilium/ci-kernels:6.6
  vole kernel rm --all`,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case all && len(args) > 0:
				return &usageError{fmt.Errorf("--all and %q: want one of them", args[0])}
			case !all && len(args) == 0:
				return &usageError{errors.New("which kernel? `vole kernel ls` lists them; --all removes all that were pulled")}
			}
			return nil
		},
		ValidArgsFunction: func(_ *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			var names []string
			for _, k := range pulledKernels() {
				names = append(names, k.Name)
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := interruptible()
			defer stop()
			remove, err := chosenKernels(args, all)
			if err != nil {
				return err
			}
			cache := pullCache()
			for _, k := range remove {
				if err := removeKernel(ctx, cache, k); err != nil {
					return stoppedOr(ctx, err)
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s is gone\n", commandName(cmd), oneLine(k.Name))
			}
			if !all {
				return nil
			}
			if err := pull.Clean(""); err != nil {
				return pullError(err)
			}
			if cache == nil {
				return nil
			}
			err = cache.PruneContext(ctx, 0)
			if ctx.Err() != nil {
				return stoppedOr(ctx, ctx.Err())
			}
			return errors.Join(err, initramfs.Cache{Dir: harness.ModulesCacheIn(cache)}.Clear())
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "remove all that were pulled, and the caches of unpacked kernels and modules")
	return cmd
}

// pulledKernels are those that can be removed.
func pulledKernels() []listedKernel {
	var list []listedKernel
	for _, r := range pulledRecords() {
		list = append(list, listedKernel{Version: r.Release, Name: r.Name, Pulled: &r})
	}
	return list
}

func chosenKernels(args []string, all bool) ([]listedKernel, error) {
	list := pulledKernels()
	if all {
		return list, nil
	}
	var chosen []listedKernel
	taken := map[string]bool{}
	for _, name := range args {
		found := exactKernels(list, name)
		if len(found) == 0 {
			return nil, &usageError{fmt.Errorf("no pulled kernel %q: `vole kernel ls` lists them", name)}
		}
		for _, k := range found {
			if !taken[k.Name] {
				taken[k.Name] = true
				chosen = append(chosen, k)
			}
		}
	}
	return chosen, nil
}

// removeKernel removes one. That another process was faster is no error.
func removeKernel(ctx context.Context, cache *kernel.Cache, k listedKernel) error {
	dir, err := kernel.PulledDir()
	if err != nil {
		return err
	}
	if cache != nil {
		err := cache.ForgetContext(ctx, pulledImage(dir, k.Name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := pull.Remove(ctx, dir, k.Name); err != nil && !errors.Is(err, pull.ErrNotFound) {
		return pullError(err)
	}
	return nil
}

// stoppedOr is err, or the signal that is the cause of it.
func stoppedOr(ctx context.Context, err error) error {
	if cause := (*stopped)(nil); errors.As(context.Cause(ctx), &cause) {
		return &exitError{code: cause.code, err: fmt.Errorf("ended by %w", cause)}
	}
	return err
}

package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/vole-vmm/vole/boot/kernel"
	"github.com/vole-vmm/vole/vmm"
)

// probeTime bounds the test guest of doctor.
const probeTime = 20 * time.Second

const doctorLong = `Look at what this host offers a virtual machine, and say how to fix what is missing.

Each line is ok, warn (a boot works, something is slower or not to be had) or FAIL. The exit code is
0 if a stock distribution kernel can boot here, otherwise 1.`

func newDoctor() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this host can do and how to fix what it can't",
		Long:  doctorLong,
		Args:  noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(context.Background(), probeTime)
			defer cancel()
			d := thisHost(ctx).examine()
			var err error
			if asJSON {
				err = writeJSON(cmd.OutOrStdout(), d)
			} else {
				err = d.print(cmd.OutOrStdout())
			}
			if err == nil && !d.CanBoot {
				err = &exitError{code: codeHost}
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// level says how bad a finding is.
type level string

const (
	levelOK   level = "ok"
	levelWarn level = "warn"
	levelFail level = "FAIL"
)

// finding is one line of doctor's answer.
type finding struct {
	Level level  `json:"level"`
	Name  string `json:"name"`
	Says  string `json:"says"`
	Fix   string `json:"fix,omitempty"`
}

// diagnosis is doctor's whole answer.
type diagnosis struct {
	CanBoot  bool         `json:"can_boot"`
	Findings []finding    `json:"findings"`
	Host     vmm.HostInfo `json:"host"`
}

func (d *diagnosis) add(l level, name, fix, format string, args ...any) {
	d.Findings = append(d.Findings, finding{l, name, fmt.Sprintf(format, args...), fix})
}

// print writes the answer for people.
func (d *diagnosis) print(w io.Writer) error {
	for _, f := range d.Findings {
		if _, err := fmt.Fprintf(w, "%-4s  %-14s  %s\n", f.Level, f.Name, oneLine(f.Says)); err != nil {
			return err
		}
		if f.Fix != "" {
			if _, err := fmt.Fprintf(w, "%22s  fix: %s\n", "", oneLine(f.Fix)); err != nil {
				return err
			}
		}
	}
	verdict := "A stock kernel can boot here."
	if !d.CanBoot {
		verdict = "A stock kernel can't boot here."
	}
	_, err := fmt.Fprintf(w, "\n%s\n", verdict)
	return err
}

// patient is the host that doctor looks at: a test's is a directory and made-up answers.
type patient struct {
	root    string // put before every path that is looked at
	user    string
	groups  []int
	info    vmm.HostInfo
	err     error // of the probe that gave info
	beneath error // of tryBeneath
	kernels []kernel.Kernel
}

func (p *patient) examine() *diagnosis {
	d := &diagnosis{Host: p.info}
	d.CanBoot = p.err == nil && p.info.CanBootStock()
	p.device(d)
	p.processor(d)
	p.nesting(d)
	p.tun(d)
	p.vhost(d)
	p.userNet(d)
	p.sharing(d)
	p.hugePages(d)
	p.images(d)
	return d
}

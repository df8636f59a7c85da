package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/vmm"
)

func TestTimelineSVG(t *testing.T) {
	for name, marks := range map[string][]vmm.Mark{
		"nothing": nil,
		"one":     {{Name: "process"}},
		"a run": {
			{Name: "process"}, {Name: "main", At: 2 * time.Millisecond}, {Name: vmm.MarkEntry, At: 30 * time.Millisecond},
			{Name: "<odd>", At: 31 * time.Millisecond}, {Name: vmm.MarkExit, At: 4 * time.Second},
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := timelineSVG(`a "title" & <more>`, marks)
			d := xml.NewDecoder(bytes.NewReader(b))
			for {
				_, err := d.Token()
				if errors.Is(err, io.EOF) {
					break
				}
				require.NoError(t, err)
			}
			assert.Equal(t, max(len(marks)-1, 0), strings.Count(string(b), "fill=\"#424242\""), "a row for each phase")
			assert.NotContains(t, string(b), "NaN")
		})
	}
}

func TestNiceStep(t *testing.T) {
	for _, total := range []time.Duration{1, time.Microsecond, 7 * time.Millisecond, 999 * time.Millisecond, time.Second, 90 * time.Second} {
		step := niceStep(total)
		assert.LessOrEqual(t, total/step, time.Duration(10), "%v", total)
	}
}

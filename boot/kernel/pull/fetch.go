package pull

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Bounds on downloads.
const (
	maxDownload    = 8 << 30 // bytes of one file
	connectTimeout = 30 * time.Second
	headerTimeout  = 60 * time.Second
	idleTimeout    = 60 * time.Second // without a byte
	maxRedirects   = 10
	userAgent      = "vole"
)

// errStalled ends a transfer in which nothing comes any more.
var errStalled = fmt.Errorf("nothing has come for %v", idleTimeout)

// errRedirect is a redirect that is not followed.
var errRedirect = errors.New("it redirects")

// web is an HTTP client with bounds on everything.
type web struct {
	client *http.Client
	idle   time.Duration
	// retries are the pauses before another attempt after one that brought
	// nothing.
	retries []time.Duration
}

func newWeb() *web {
	dialer := net.Dialer{Timeout: connectTimeout}
	return &web{
		client: &http.Client{
			Transport: &http.Transport{
				Proxy:                 http.ProxyFromEnvironment,
				DialContext:           dialer.DialContext,
				ForceAttemptHTTP2:     true,
				DisableCompression:    true,
				TLSHandshakeTimeout:   connectTimeout,
				ResponseHeaderTimeout: headerTimeout,
				MaxIdleConnsPerHost:   2,
			},
			CheckRedirect: func(req *http.Request, via []*http.Request) error {
				if len(via) >= maxRedirects {
					return fmt.Errorf("%w: more than %d", errRedirect, maxRedirects)
				}
				if req.URL.Scheme != "https" && via[len(via)-1].URL.Scheme == "https" {
					return fmt.Errorf("%w: from https to %s", errRedirect, req.URL.Scheme)
				}
				return nil
			},
		},
		idle:    idleTimeout,
		retries: []time.Duration{500 * time.Millisecond, 2 * time.Second, 5 * time.Second},
	}
}

func (w *web) close() { w.client.CloseIdleConnections() }

// statusError is an answer of a server that is not what was asked for.
type statusError struct {
	url    string
	status int
	says   string
	// challenge is the header WWW-Authenticate.
	challenge string
}

func (e *statusError) Error() string {
	s := fmt.Sprintf("%s answers %d %s", e.url, e.status, http.StatusText(e.status))
	if e.says != "" {
		s += ": " + e.says
	}
	return s
}

func (e *statusError) Is(target error) bool {
	switch e.status {
	case http.StatusNotFound, http.StatusGone:
		return target == ErrNotFound
	}
	return false
}

// transient says whether it may be better the next time.
func (e *statusError) transient() bool {
	return e.status == http.StatusTooManyRequests || e.status >= 500 || e.status == http.StatusRequestTimeout
}

// do sends a request and returns the response if its status is among want. The
// caller closes the body. idle, if it is not nil, ends the request's context
// with errStalled; do sets it to w.idle once the headers are there.
func (w *web) do(req *http.Request, idle *time.Timer, want ...int) (*http.Response, error) {
	req.Header.Set("User-Agent", userAgent)
	resp, err := w.client.Do(req)
	stalled := func() bool { return context.Cause(req.Context()) == errStalled }
	if err != nil {
		if stalled() {
			err = errStalled
		}
		var inner *url.Error
		if errors.As(err, &inner) {
			err = inner.Err
		}
		return nil, fmt.Errorf("%s: %w", req.URL.Redacted(), err)
	}
	if idle != nil {
		idle.Reset(w.idle)
	}
	for _, status := range want {
		if resp.StatusCode == status {
			return resp, nil
		}
	}
	defer resp.Body.Close()
	e := &statusError{url: req.URL.Redacted(), status: resp.StatusCode, challenge: resp.Header.Get("WWW-Authenticate")}
	b, err := io.ReadAll(io.LimitReader(resp.Body, 512))
	switch {
	case err != nil && stalled():
		return nil, fmt.Errorf("%w; %w", e, errStalled)
	case err == nil && strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain"):
		e.says = strings.Join(strings.Fields(string(b)), " ")
	}
	return nil, e
}

// get reads a small document, at most max bytes.
func (w *web) get(req *http.Request, max int64) (b []byte, resp *http.Response, err error) {
	for tries := 0; ; tries++ {
		b, resp, err = w.getOnce(req, max)
		if err == nil || !retryable(err) || !w.pause(req.Context(), tries) {
			return b, resp, err
		}
	}
}

func (w *web) getOnce(req *http.Request, max int64) ([]byte, *http.Response, error) {
	ctx, cancel := context.WithTimeout(req.Context(), headerTimeout+w.idle)
	defer cancel()
	resp, err := w.do(req.WithContext(ctx), nil, http.StatusOK)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, max+1))
	if err == nil && int64(len(b)) > max {
		err = archiveError("more than %d bytes", max)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", req.URL.Redacted(), err)
	}
	return b, resp, nil
}

// pause waits before another attempt, if there is to be one after so many.
func (w *web) pause(ctx context.Context, tries int) bool {
	if tries >= len(w.retries) {
		return false
	}
	pause := time.NewTimer(w.retries[tries])
	defer pause.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-pause.C:
		return true
	}
}

// download is a file on a server.
type download struct {
	url    string
	header http.Header // to be sent, or nil
	name   string      // for progress
	size   int64       // in bytes, 0 if it isn't known
	sum    string      // hexadecimal SHA-256, "" if it isn't known
}

// String is the URL without its password.
func (d download) String() string {
	u, err := url.Parse(d.url)
	if err != nil {
		return d.name
	}
	return u.Redacted()
}

// partInfo is what stands beside a part of a file: what must be the same for the
// rest to belong to it.
type partInfo struct {
	URL  string `json:"url"`
	ETag string `json:"etag,omitempty"` // a strong one
	Sum  string `json:"sha256,omitempty"`
}

func (p partInfo) resumable() bool { return p.ETag != "" || p.Sum != "" }

// fetch brings a file to the path to, and returns its SHA-256. What was fetched
// when it ends early is in to+".part", and is gone on with by the next fetch, if
// it can be told that the rest belongs to it; otherwise it is removed. A file
// that is there already with the right sum is taken.
func (w *web) fetch(ctx context.Context, d download, to string, report *reporter) (sum string, err error) {
	if d.sum != "" {
		if sum, err := fileSum(ctx, to); err == nil && sum == d.sum {
			return sum, nil
		}
	}
	part, info := to+".part", to+".part.json"
	var tries int
	var fresh bool
	for {
		before := fileSize(part)
		resumed, err := w.attempt(ctx, d, part, info, report)
		if err == nil {
			if sum, err = fileSum(ctx, part); err != nil {
				return "", err
			}
			if d.sum == "" || sum == d.sum {
				os.Remove(info)
				return sum, os.Rename(part, to)
			}
			os.Remove(part)
			os.Remove(info)
			if resumed && !fresh { // the first part may have been another file's
				fresh = true
				continue
			}
			return "", fmt.Errorf("%s: %w: its SHA-256 is %s, want %s", d, ErrChecksum, sum, d.sum)
		}
		if !keepPart(info) || errors.Is(err, errHost) {
			os.Remove(part)
			os.Remove(info)
		}
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		if fileSize(part) > before {
			tries = 0
		}
		if !retryable(err) || !w.pause(ctx, tries) {
			return "", err
		}
		tries++
	}
}

// errHost marks errors of the disk, after which nothing is kept on it.
var errHost = errors.New("can't write")

func retryable(err error) bool {
	var status *statusError
	if errors.As(err, &status) {
		return status.transient()
	}
	var dns *net.DNSError
	var cert *tls.CertificateVerificationError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound, errors.As(err, &cert), errors.Is(err, errRedirect):
		return false
	}
	return !errors.Is(err, errHost) && !errors.Is(err, ErrArchive)
}

func keepPart(info string) bool {
	p, err := readPartInfo(info)
	return err == nil && p.resumable()
}

func readPartInfo(path string) (p partInfo, err error) {
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	return p, err
}

// attempt fetches what is missing of the file. resumed says that a part of it
// was there.
func (w *web) attempt(ctx context.Context, d download, part, info string, report *reporter) (resumed bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.url, nil)
	if err != nil {
		return false, err
	}
	for k, v := range d.header {
		req.Header[k] = v
	}
	have := fileSize(part)
	if p, err := readPartInfo(info); have > 0 && err == nil && p.URL == d.url && p.Sum == d.sum && p.resumable() {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", have))
		if p.ETag != "" {
			req.Header.Set("If-Range", p.ETag)
		}
	} else {
		have = 0
	}
	idle := time.AfterFunc(headerTimeout+w.idle, func() { cancel(errStalled) })
	defer idle.Stop()
	resp, err := w.do(req, idle, http.StatusOK, http.StatusPartialContent)
	var status *statusError
	if errors.As(err, &status) && status.status == http.StatusRequestedRangeNotSatisfiable && have > 0 {
		if d.size == have { // all of it is there
			return true, nil
		}
		os.Remove(part)
		return false, &statusError{url: d.String(), status: http.StatusRequestTimeout, says: "what was fetched of it before does not fit"}
	}
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	total := resp.ContentLength
	if resp.StatusCode == http.StatusPartialContent {
		start, whole, ok := contentRange(resp.Header.Get("Content-Range"))
		if !ok || start != have || have == 0 {
			os.Remove(part)
			return false, &statusError{url: d.String(), status: http.StatusRequestTimeout, says: "it sends another range than was asked for"}
		}
		resumed, total = true, whole
	} else {
		have = 0
	}
	if d.size > 0 {
		if total > 0 && total != d.size {
			return resumed, archiveError("%s has %d bytes, want %d", d, total, d.size)
		}
		total = d.size
	}
	if total > maxDownload {
		return resumed, archiveError("%s has %d bytes, more than %d", d, total, int64(maxDownload))
	}
	if err := savePart(resp, d, info, have == 0); err != nil {
		return resumed, err
	}
	f, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return resumed, fmt.Errorf("%w: %w", errHost, err)
	}
	defer f.Close()
	if err := f.Truncate(have); err != nil {
		return resumed, fmt.Errorf("%w: %w", errHost, err)
	}
	if _, err := f.Seek(have, io.SeekStart); err != nil {
		return resumed, fmt.Errorf("%w: %w", errHost, err)
	}
	limit := int64(maxDownload)
	if total > 0 {
		limit = total
	}
	buf := make([]byte, 128<<10)
	for {
		report.report(StepDownloading, d.name, have, max(total, 0))
		n, rerr := resp.Body.Read(buf)
		idle.Reset(w.idle)
		if int64(n) > limit-have {
			return resumed, archiveError("%s has more than %d bytes", d, limit)
		}
		if _, err := f.Write(buf[:n]); err != nil {
			return resumed, fmt.Errorf("%w: %w", errHost, err)
		}
		have += int64(n)
		if rerr == io.EOF {
			break
		}
		if rerr != nil {
			if cause := context.Cause(ctx); cause != nil {
				rerr = cause
			}
			return resumed, fmt.Errorf("%s: %w", d, rerr)
		}
	}
	if total > 0 && have != total {
		return resumed, fmt.Errorf("%s: %w after %d of %d bytes", d, io.ErrUnexpectedEOF, have, total)
	}
	if err := f.Close(); err != nil {
		return resumed, fmt.Errorf("%w: %w", errHost, err)
	}
	report.report(StepDownloading, d.name, have, have)
	return resumed, nil
}

// savePart writes down what the part that begins now is of.
func savePart(resp *http.Response, d download, info string, begins bool) error {
	if !begins {
		return nil
	}
	p := partInfo{URL: d.url, Sum: d.sum}
	if tag := resp.Header.Get("ETag"); strings.HasPrefix(tag, `"`) {
		p.ETag = tag
	}
	b, err := json.Marshal(p)
	if err == nil {
		err = os.WriteFile(info, b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errHost, err)
	}
	return nil
}

// contentRange reads "bytes 100-199/200"; whole is 0 for "*".
func contentRange(s string) (start, whole int64, ok bool) {
	rest, ok := strings.CutPrefix(s, "bytes ")
	if !ok {
		return 0, 0, false
	}
	span, size, ok := strings.Cut(rest, "/")
	if !ok {
		return 0, 0, false
	}
	from, _, ok := strings.Cut(span, "-")
	start, err := strconv.ParseInt(from, 10, 64)
	if !ok || err != nil || start < 0 {
		return 0, 0, false
	}
	if size != "*" {
		if whole, err = strconv.ParseInt(size, 10, 64); err != nil || whole < start {
			return 0, 0, false
		}
	}
	return start, whole, true
}

func fileSize(path string) int64 {
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() {
		return 0
	}
	return info.Size()
}

// errIrregular is what is no file with bytes in it.
var errIrregular = errors.New("not a regular file")

// openRegular opens a file, which is not waited for whatever it is.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: path, Err: errIrregular}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// fileSum is the SHA-256 of a regular file, in hexadecimal.
func fileSum(ctx context.Context, path string) (string, error) {
	f, err := openRegular(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	in := &bounded{ctx: ctx, r: f, left: 1 << 62}
	if _, err := io.CopyBuffer(h, in, make([]byte, 256<<10)); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

/* Softmax regression on digits in plain C, trained by AdamW from libonepass.
 *
 * It shows onepass_step in a training loop: two groups, since biases do not decay, gradients that
 * are clipped by their common norm and zeroed, and an average of the weights, in one pass.
 *
 *   cmake -S onepass -B build -DONEPASS_LIBRARY=ON && cmake --build build && cmake --install build
 *   cc -std=c99 -O2 digits.c -o digits $(pkg-config --cflags --libs onepass) -lm
 *   ./digits digits.csv             a picture a line: 64 numbers from 0 to 16, then the digit
 *   ./digits digits.csv steps.bin   writes each gradient, and last the weights and their average
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <onepass/capi.h>

enum { PIXELS = 64, DIGITS = 10, WEIGHTS = PIXELS * DIGITS, ALL = WEIGHTS + DIGITS };
enum { MOST = 2000, HELD_OUT = 300, BATCH = 64, EPOCHS = 15 };

static float images[MOST][PIXELS];
static int labels[MOST];

static int read_digits(FILE *file) {
  int n, k, number;
  for (n = 0; n < MOST; ++n) {
    for (k = 0; k < PIXELS && fscanf(file, "%d,", &number) == 1; ++k) {
      images[n][k] = (float)number / 16;
    }
    if (k < PIXELS || fscanf(file, "%d", &labels[n]) != 1) break;
    if (labels[n] < 0 || labels[n] >= DIGITS) return 0;
  }
  return n;
}

/* Writes the probability of each digit, of picture i. The biases lie behind the weights. */
static void predict(const float *param, int i, float *p) {
  float sum = 0, most = -INFINITY;
  int j, k;
  for (j = 0; j < DIGITS; ++j) {
    p[j] = param[WEIGHTS + j];
    for (k = 0; k < PIXELS; ++k) p[j] += images[i][k] * param[j * PIXELS + k];
    if (p[j] > most) most = p[j];
  }
  for (j = 0; j < DIGITS; ++j) sum += p[j] = expf(p[j] - most);
  for (j = 0; j < DIGITS; ++j) p[j] /= sum;
}

/* Adds a picture's part of a batch's gradient, and returns its loss. */
static double add_gradient(const float *param, int i, float *grad) {
  float p[DIGITS];
  int j, k;
  predict(param, i, p);
  for (j = 0; j < DIGITS; ++j) {
    const float error = (p[j] - (float)(j == labels[i])) / BATCH;
    grad[WEIGHTS + j] += error;
    for (k = 0; k < PIXELS; ++k) grad[j * PIXELS + k] += error * images[i][k];
  }
  return -log(p[labels[i]]);
}

static double part_found(const float *param, int first, int last) {
  int i, j, best, found = 0;
  for (i = first; i < last; ++i) {
    float p[DIGITS];
    predict(param, i, p);
    for (best = 0, j = 1; j < DIGITS; ++j) best = p[j] > p[best] ? j : best;
    found += best == labels[i];
  }
  return (double)found / (last - first);
}

/* AdamW is the rule adam with a decay that is decoupled. */
static double *make_settings(int32_t rule, double weight_decay) {
  static const char *const names[] = {"lr", "ema_decay", "decoupled_weight_decay", "weight_decay"};
  const double values[] = {0.01, 0.98, 1, weight_decay};
  double *settings = malloc((size_t)onepass_count(rule, ONEPASS_SETTINGS) * sizeof *settings);
  int k;
  if (settings == NULL || onepass_defaults(rule, settings) != ONEPASS_OK) abort();
  for (k = 0; k < 4; ++k) {
    if (onepass_set(rule, settings, names[k], values[k]) != ONEPASS_OK) abort();
  }
  return settings;
}

int main(int argc, char **argv) {
  static float param[ALL], grad[ALL], exp_avg[ALL], exp_avg_sq[ALL], averaged[ALL];
  static double average[ALL];
  const int32_t rule = onepass_rule("adam");
  const onepass_group groups[] = {{rule, 0, make_settings(rule, 0.05)},
                                  {rule, 0, make_settings(rule, 0)}};
  static onepass_tensor tensors[2];
  onepass_call call = onepass_new_call();
  onepass_result result = onepass_new_result();
  FILE *const file = argc > 1 ? fopen(argv[1], "r") : NULL;
  FILE *const record = argc > 2 ? fopen(argv[2], "wb") : NULL;
  const int n = file ? read_digits(file) - HELD_OUT : 0;
  int epoch, batch, i, k;

  if (n < BATCH || (argc > 2 && !record)) {
    fprintf(stderr, "usage: %s digits.csv [steps.bin]\n", argv[0]);
    return 1;
  }
  for (k = 0; k < 2; ++k) {
    const int begin = k * WEIGHTS;
    tensors[k].group = k;
    tensors[k].size = k == 0 ? WEIGHTS : DIGITS;
    tensors[k].param = param + begin;
    tensors[k].grad = grad + begin;
    tensors[k].state[0] = exp_avg + begin;
    tensors[k].state[1] = exp_avg_sq + begin;
    tensors[k].average = average + begin;
  }
  call.max_norm = 0.5;
  call.zero_grad = 1;
  call.threads = 1;

  for (epoch = 0; epoch < EPOCHS; ++epoch) {
    double loss = 0;
    for (batch = 0; batch < n / BATCH; ++batch) {
      for (i = 0; i < BATCH; ++i) loss += add_gradient(param, batch * BATCH + i, grad);
      if (record) fwrite(grad, sizeof grad, 1, record);
      const int32_t code = onepass_step(groups, 2, tensors, 2, &call, &result);
      if (code != ONEPASS_OK) {
        fprintf(stderr, "tensor %d: %s\n", (int)result.tensor, onepass_message(code));
        return 1;
      }
      for (k = 0; k < 2; ++k) ++tensors[k].steps;
    }
    for (k = 0; k < ALL; ++k) averaged[k] = (float)average[k];
    printf("epoch %2d: loss %.4f, found %.1f %% with the weights, %.1f %% with their average\n",
           epoch, loss / (n / BATCH * BATCH), 100 * part_found(param, n, n + HELD_OUT),
           100 * part_found(averaged, n, n + HELD_OUT));
  }
  if (record) {
    fwrite(param, sizeof param, 1, record);
    fwrite(average, sizeof average, 1, record);
    fclose(record);
  }
  return 0;
}

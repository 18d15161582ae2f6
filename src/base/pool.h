/* Moved: cpu/pool.h */
#include "cpu/pool.h"
